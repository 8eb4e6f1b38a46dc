"""The capacity model: what a workload needs, by measured figures. Pure; `imctl size` is its shell.

``inputs`` (the workload) and ``figures`` (what one core or gigabyte does, with sources) go into
``model``, which gives a ``Sizing``; ``sensitivity`` asks it again with one input doubled; ``view``
shows it.
"""
