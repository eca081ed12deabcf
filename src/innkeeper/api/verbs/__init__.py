"""One verb per file, each with one entry function of the verb's name: check, write, wait.

They know nothing of HTTP. What is wanted is written with compare-and-swap and carried out by the
agent of the host, whose answer they wait for on a watch; see `store/settle.py`.
"""
