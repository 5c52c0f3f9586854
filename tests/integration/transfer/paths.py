"""Which pipeline an image must take, said once more and independently of the planner."""

from tests.integration.fixtures_images import Image


def path_of(image: Image, *, ranges: bool) -> str:
    direct = ranges and not image.wrappers
    # A fixed VHD that is wrapped or comes once shows only at its end that it is more than a raw disk.
    match image.kind.engine:
        case "raw":
            return "raw-ranged" if direct else "raw-stream"
        case "qcow2":
            return "qcow2-ranged" if direct else "qcow2-stream"
        case _:
            return "qemu-bridge" if direct else "qemu-spool"
