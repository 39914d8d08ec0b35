"""`nlora doctor`: what nlora runs on, and what is wrong with it.

Nothing here needs torch or PEFT to be importable: that they are not is what a user wants to be told.
"""
