"""The engine on servers: token ids go out over HTTP, token ids come back. It looks like the local one to whoever asks.

`client` sends and repeats, `dialects` knows how each kind of server is asked, `answers` checks what came back, `handshake`
finds out what a server is and can do, `engine` puts them together.
"""
