"""Data sets, a protocol and a backbone, registered by entry points alone."""
