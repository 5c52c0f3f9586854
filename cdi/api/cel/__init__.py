"""Rules that an API server checks itself, in the Common Expression Language: ``x-kubernetes-validations``.

They say what `cdi.api.rules` says, as far as the language can, and in its words, so that a cluster refuses a broken
object also while the webhooks are away.  What they leave out is whatever would cost more than an API server allows, or
needs another object to be seen.

Cost.  An API server reckons each rule's worst case from the schema before it takes a definition: a string without a
maxLength counts as three megabytes, a list without maxItems as a million members.  Hence the limits here; none refuses
what could ever have worked.
"""
