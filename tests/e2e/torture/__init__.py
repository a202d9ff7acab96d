"""Whether anything that was acknowledged is ever lost: real processes that die, and a checker that trusts none of them.

conductor.py     starts everything, kills it again and again, waits until nothing is owed any more
publisher.py     a process that publishes numbered messages
subscriber.py    a process that takes deliveries, and misbehaves
faulty_serve.py  the broadcaster, told to die at a certain point, or to have a certain bug (points.py, bugs.py)
checker.py       a program that reads only what publishers and subscribers wrote down (journals.py)
"""
