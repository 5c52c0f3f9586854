"""Small qcow2 files in the layout that a test needs: tables first, last or in between, clusters in any order."""

import random
import struct
import zlib
from dataclasses import dataclass, field

COMPRESSED = 1 << 62
COPIED = 1 << 63
EXTENDED_L2 = 1 << 4


@dataclass
class Layout:
    """The layout of a file.

    Attributes:
        clusters: guest cluster index → (bytes of one cluster, compressed).
        order: what follows the header, as "l1", ("l2", index), ("data", guest index) or ("junk", size); what is needed
            and not named comes at the end.
    """

    virtual_size: int
    cluster_bits: int = 12
    clusters: dict = field(default_factory=dict)
    zeros: set = field(default_factory=set)
    order: list = field(default_factory=list)
    version: int = 3
    bitmaps: dict | None = None
    """guest cluster index → bitmap of its subclusters; with one, entries are extended."""

    @property
    def entry_size(self):
        return 8 if self.bitmaps is None else 16


def deflate(data):
    packer = zlib.compressobj(9, zlib.DEFLATED, -12)
    return packer.compress(data) + packer.flush()


def write(layout):
    """Return the file's bytes."""
    cluster = 1 << layout.cluster_bits
    entries = cluster // layout.entry_size
    l1_entries = -(-layout.virtual_size // (cluster * entries))
    bitmaps = layout.bitmaps or {}
    tables = sorted({guest // entries for guest in set(layout.clusters) | layout.zeros | set(bitmaps)})
    wanted = ["l1", *(("l2", index) for index in tables), *(("data", guest) for guest in sorted(layout.clusters))]
    order = [item for item in layout.order if item in wanted or (isinstance(item, tuple) and item[0] == "junk")]
    order += [item for item in wanted if item not in order]

    def up(position, to):
        return -(-position // to) * to

    # The second cluster is an empty refcount table: readers do not use it.
    placed, position, payload = {}, 2 * cluster, {}
    for number, item in enumerate(order):
        if item == "l1":
            position = up(position, cluster)
            placed[item] = position
            position += up(l1_entries * 8, cluster)
        elif item[0] == "l2":
            position = up(position, cluster)
            placed[item] = position
            position += cluster
        elif item[0] == "junk":
            position = up(position, cluster)
            payload[position] = bytes((number * 7 + n) & 255 for n in range(item[1]))
            position += up(item[1], cluster)
        else:
            data, packed = layout.clusters[item[1]]
            if packed:
                body = deflate(data)
                sectors = ((position + len(body) - 1) >> 9) - (position >> 9)
                shift = 62 - (layout.cluster_bits - 8)
                placed[item] = COMPRESSED | (sectors << shift) | position
                payload[position] = body
                position += len(body)
            else:
                position = up(position, cluster)
                placed[item] = COPIED | position
                payload[position] = data
                position += cluster
    # QEMU too pads a file with compressed clusters to a sector.
    out = bytearray(up(position, 512))
    header = struct.pack(
        ">4sIQIIQIIQQIIQ", b"QFI\xfb", layout.version, 0, 0, layout.cluster_bits, layout.virtual_size, 0,
        l1_entries, placed["l1"], cluster, 1, 0, 0,
    )  # fmt: skip
    if layout.version == 3:
        header += struct.pack(">QQQII", 0 if layout.bitmaps is None else EXTENDED_L2, 0, 0, 4, 104)
    out[: len(header)] = header
    l1 = [COPIED | placed[("l2", index)] if ("l2", index) in placed else 0 for index in range(l1_entries)]
    out[placed["l1"] : placed["l1"] + 8 * l1_entries] = struct.pack(f">{l1_entries}Q", *l1)
    for index in tables:
        table = []
        for number in range(entries):
            guest = index * entries + number
            entry = placed.get(("data", guest), 0)
            table.append(1 if guest in layout.zeros and not entry else entry)
            if layout.bitmaps is not None:
                table.append(bitmaps.get(guest, 0))
        at = placed[("l2", index)]
        out[at : at + cluster] = struct.pack(f">{len(table)}Q", *table)
    for at, body in payload.items():
        out[at : at + len(body)] = body
    return bytes(out)


def disk_of(layout):
    """Return the disk that the file holds."""
    cluster = 1 << layout.cluster_bits
    disk = bytearray(layout.virtual_size)
    for guest, (data, packed) in layout.clusters.items():
        if layout.bitmaps is not None and not packed:
            bitmap, size = layout.bitmaps.get(guest, 0), cluster // 32
            data = b"".join(data[n * size :][:size] if bitmap >> n & 1 else bytes(size) for n in range(32))
        room = min(cluster, layout.virtual_size - guest * cluster)
        if room > 0:
            disk[guest * cluster : guest * cluster + room] = data[:room]
    return bytes(disk)


def random_subclusters(seed):
    """Return a layout with extended entries: every kind of bitmap, compressed clusters, data in front of its table."""
    dice = random.Random(seed)
    cluster = 1 << 14
    total = dice.choice([1, 3, 40, 1030])
    size = total * cluster - dice.choice([0, 512, 512 * 31, cluster - 512])
    clusters, bitmaps = {}, {}
    for guest in dice.sample(range(total), min(total, dice.randrange(1, 30))):
        shape = dice.random()
        if shape < 0.2:
            clusters[guest] = (dice.randbytes(64) * (cluster // 64), True)
            continue
        allocated = dice.choice([0, 1, 1 << 31, 0xFFFF_FFFF, 0x00FF_FF00, dice.getrandbits(32)])
        zeros = dice.choice([0, dice.getrandbits(32), 0xFFFF_FFFF]) & ~allocated & 0xFFFF_FFFF
        bitmaps[guest] = zeros << 32
        if shape < 0.9:
            clusters[guest] = (dice.randbytes(cluster), False)
            bitmaps[guest] |= allocated
    order = [("data", guest) for guest in clusters]
    dice.shuffle(order)
    order = order[: dice.choice([0, 2, len(order)])]
    return Layout(size, 14, clusters, set(), order, bitmaps=bitmaps)
