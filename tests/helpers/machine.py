"""Code that limits what a started process may do on this machine."""

READ_ONLY = """
import os, sys

def refuse(event, arguments):
    if event == "open" and isinstance(arguments[0], str | bytes):
        path, is_write = os.fsdecode(arguments[0]), bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    elif event == "os.mkdir":
        path, is_write = os.fsdecode(arguments[0]), True
    else:
        return
    if is_write and not os.path.abspath(path).startswith(("/dev/", {writable!r})):
        raise PermissionError(13, "read-only", path)

sys.addaudithook(refuse)
"""
