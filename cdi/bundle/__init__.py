"""Bundles: golden images with signatures and records of origin in one OCI image layout, for use without a network.

    index.json
      NAME                 the image: that of the registry, unchanged, or a containerDisk made from the volume
      NAME_golden          what the other side needs to offer it (`cdi.bundle.contents.GoldenDocument`)
      NAME_record          its record of origin
      NAME_bundle          a signed statement about the image in the bundle, if a key was given
      sha256-HEX.sig …     cosign's signatures under their tags
      (without a name)     other referrers of the image

Names are values of ``org.opencontainers.image.ref.name``. An underscore cannot be part of an object's name, so they
cannot collide.
"""
