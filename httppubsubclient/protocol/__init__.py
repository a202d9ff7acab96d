"""What both sides must agree on, and nothing else: pure functions and values.

No I/O, no clock, no asyncio: time, randomness and keys are arguments. The wire is described in docs/protocol.md.
"""
