"""Reconcilers, one module for each kind of request, and the table in which they are registered (`registry`).

    change of an object ──► Watch.handler ──► requests ──► work queue ──► Reconciler.reconcile ──► Result

A reconciler is level-based: it gets the name of what to reconcile, not the change that led to it, and derives all
that is to be done from the objects as they are now.
"""
