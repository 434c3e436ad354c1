"""HTTP/1.0 and 1.1 as a proxy has to read it: heads, bodies, and where an answer ends. No input or output.

llhttp (`httptools`) says what is well-formed; what a second reader could take for something else is refused here, or written anew.
"""
