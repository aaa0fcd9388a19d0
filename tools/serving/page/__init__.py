"""The page of tools/serve.py: its components, the files of its sessions, and what its buttons do."""
