"""Validation rules in the Common Expression Language (``x-kubernetes-validations``), evaluated by the API server.

They implement `cdi.api.rules` with the same messages, as far as the language permits, so that a cluster rejects invalid
objects even while the webhooks are down. Rules that would exceed the API server's cost limit or need other objects are
omitted.

Cost: when a definition is created, the API server estimates each rule's worst case from the schema. A string without
maxLength counts as three megabytes, a list without maxItems as a million elements. The limits here exist for that
reason; none rejects a value that could work.
"""
