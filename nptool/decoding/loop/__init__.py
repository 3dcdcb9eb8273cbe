"""The decoding loop, see `nptool.decoding.loop.loop`, and the interfaces of what it works with."""
