"""The log: written while a run lives, read back when it is judged. The only room that imports mlflow.

``record`` is the exception: plain dataclasses without mlflow, which the gates and the reports consume.
"""
