"""What tools/predict.py and tools/evaluate.py are made of: networks and other steps over many images."""
