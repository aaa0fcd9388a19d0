"""Networks as files: model folders, ONNX, published ViTMatte weights."""
