"""Networks as files: model folders, ONNX, published ViTMatte weights, the Hugging Face hub."""
