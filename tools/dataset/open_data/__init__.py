"""What tools/make_open_dataset.py is made of: sources, their archives, their licences, the images written."""
