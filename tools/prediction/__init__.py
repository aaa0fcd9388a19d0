"""What tools/predict.py is made of: its command line, and the steps that an image goes through."""
