"""What tools/serve.py is made of: the HTTP service, its queue, its limits and guards, and the page."""
