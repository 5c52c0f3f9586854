"""Names that vulture counts as used, although nothing in the package mentions them.

A name is here only for one of the reasons below; unused code is removed instead.
"""
# ruff: noqa: B018, F821 - a list of names, which is parsed and never run
# mypy: ignore-errors

# Fields of models, which pydantic and dataclass decoders set and read by name.
_.ALWAYS
_.IF_NOT_PRESENT
_.block_owner_deletion
_.data_volume_ttl_seconds
_.default_pod_resource_requirements
_.deletion_grace_period_seconds
_.effect
_.gcs
_.imageio
_.immutable
_.init_image_url
_.intermediate
_.iss
_.label_selector
_.managed_fields
_.match_expressions
_.match_fields
_.match_label_keys
_.match_labels
_.mismatch_label_keys
_.model_config
_.modern
_.namespace_selector
_.node_affinity
_.node_selector
_.node_selector_terms
_.observed_version
_.operator
_.operator_version
_.parent_name
_.pod_affinity
_.pod_affinity_term
_.pod_anti_affinity
_.preferred_during_scheduling_ignored_during_execution
_.required_during_scheduling_ignored_during_execution
_.restart_count
_.s3
_.self_link
_.target_version
_.toleration_seconds
_.tolerations
_.topology_key
_.upload_proxy
_.vddk
_.volume_attributes_class_name
_.weight

# Names that clients of KubeVirt's CDI know and this implementation never writes; docs/reference/state.md lists them.
ANN_BACKING_FILE
ANN_CHECKPOINTS_COPIED
ANN_CHECKPOINT_DONE
ANN_CHECKPOINT_POD_ID
ANN_CURRENT_CHECKPOINT
ANN_DELETE_AFTER_COMPLETION
ANN_DISK_ID
ANN_EVENT_SOURCE
ANN_EVENT_SOURCE_KIND
ANN_FINAL_CHECKPOINT
ANN_GARBAGE_COLLECTED
ANN_OWNED_BY_DATA_VOLUME
ANN_PREVIOUS_CHECKPOINT
ANN_REQUIRES_DIRECT_IO
ANN_THUMBPRINT
ANN_UUID
ANN_VDDK_EXTRA_ARGS
ANN_VDDK_INIT_IMAGE

# Settings whose values are read by the part of the name after the prefix.
KEEP_UNUSED_FOR
PROOF_FIRMWARE
PROOF_MEMORY

# Rules and commands that are imported by name on first use.
check_config_map
check_dataimportcron
check_datasource
check_datavolume
check_import_source
check_pvc
check_secret
check_upload_source
check_upload_token_request
import_
kubectl
list_
promote
rollback
unhold
unpin

# Methods and parameters that click, io and PyYAML call.
_.ignore_aliases
indentless
_.format_commands
_.get_command
_.list_commands
max_length
param
_.shell_complete

# Attributes that libraries read: tqdm, tarfile, logging and qemu.qmp.
_.bar_format
_.disabled
_.gid
_.linkname
_.net
_.pax_headers

# References and facts that only tests use: a simple form of what the code does faster, or what it decided on.
digest_of
grows
leaks
line_of

# Resources that are looked up by their kind or plural.
CLUSTER_ROLES
CRDS
ENDPOINT_SLICES
PRIORITY_CLASSES
SERVICE_ACCOUNTS

# Callbacks that expat reads.
_.EndElementHandler
_.StartDoctypeDeclHandler
_.StartElementHandler
