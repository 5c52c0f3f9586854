// What an image is, by its first bytes, before any is sent.  Only a preview: the server looks again and decides.

const HEAD = 64 << 10;
const DEEP = 1 << 20;
const LARGEST = 64n << 40n;

const ascii = (data, offset, length) => String.fromCharCode(...data.subarray(offset, offset + length));
const view = (data) => new DataView(data.buffer, data.byteOffset, data.byteLength);

async function read(blob, offset, length) {
  return new Uint8Array(await blob.slice(offset, offset + length).arrayBuffer());
}

/**
 * {format, wrapper, size, detail, refusal, warning}: `size` is the virtual one, a BigInt, or null where it is not known
 * before the whole was read; `refusal` says why the server will not take it.
 */
export async function probe(file) {
  const found = { format: "", wrapper: "", size: null, detail: "", refusal: "", warning: "" };
  if (file.size === 0) return { ...found, refusal: "The file is empty." };
  const head = await read(file, 0, HEAD);
  const wrapper = wrapperOf(head);
  try {
    if (!wrapper) return checked({ ...found, ...(await image(file, head, BigInt(file.size))) });
    return checked({ ...found, wrapper, ...(await unwrapped(file, head, wrapper)) });
  } catch (error) {
    if (error instanceof RangeError) return { ...found, refusal: "The image's header is truncated." };
    throw error;
  }
}

function checked(found) {
  if (found.size !== null && (found.size <= 0n || found.size > LARGEST)) {
    return { ...found, size: null, refusal: "The virtual size of the image is invalid." };
  }
  return found;
}

function wrapperOf(head) {
  if (head[0] === 0x1f && head[1] === 0x8b) return "gzip";
  if (ascii(head, 0, 6) === "\xfd7zXZ\0") return "xz";
  if (head.length >= 4 && view(head).getUint32(0, true) === 0xfd2fb528) return "zstd";
  return "";
}

// --- images ---------------------------------------------------------------------------------------------------------

/** `length` is null where the content's length is not known; then nothing but its first bytes can be looked at. */
async function image(file, head, length) {
  const v = view(head);
  const magic = ascii(head, 0, 4);
  if (magic === "QFI\xfb") return qcow2(v);
  if (magic === "KDMV") return vmdk(v);
  if (/^# Disk Descriptor ?File/i.test(ascii(head, 0, 21))) {
    return { format: "vmdk", refusal: "This VMDK only describes a disk whose data is in other files. Export it as one file." };
  }
  if (head.length >= 0x178 && v.getUint32(0x40, true) === 0xbeda107f) {
    return { format: "vdi", size: v.getBigUint64(0x170, true) };
  }
  if (ascii(head, 0, 8) === "vhdxfile") return { format: "vhdx", size: length === null ? null : await vhdx(file) };
  if (ascii(head, 0, 8) === "conectix") return vhd(v, 0);
  if (length !== null && length >= 512n) {
    const foot = await read(file, Number(length) - 512, 512);
    if (ascii(foot, 0, 8) === "conectix") return vhd(view(foot), 0);
  }
  if (/^\s*<(!doctype|html|\?xml)/i.test(ascii(head, 0, 256))) {
    return { format: "", refusal: "This is a web page or a document, not an image. Check whether a log-in page was saved instead." };
  }
  if (ascii(head, 0, 3) === "BZh" || ascii(head, 0, 4) === "PK\x03\x04" || ascii(head, 0, 4) === "7z\xbc\xaf") {
    return { format: "", refusal: "This archive format is not supported. Unpack it, and upload the image in it." };
  }
  return raw(head, length);
}

function qcow2(v) {
  const version = v.getUint32(4);
  const size = v.getBigUint64(24);
  const found = { format: "qcow2", size, detail: `version ${version}` };
  if (v.getBigUint64(8) !== 0n) {
    return { ...found, refusal: "The image is an overlay over another file. Flatten it: qemu-img convert -O qcow2 FROM TO" };
  }
  if (v.getUint32(32) !== 0) return { ...found, refusal: "The image is encrypted." };
  if (version >= 3 && v.getBigUint64(72) & 4n) {
    return { ...found, refusal: "The image keeps its data in another file. Flatten it: qemu-img convert -O qcow2 FROM TO" };
  }
  return found;
}

function vmdk(v) {
  const sectors = v.getBigUint64(12, true);
  const stream = v.getBigUint64(56, true) === 0xffffffffffffffffn;
  return { format: "vmdk", size: sectors * 512n, detail: stream ? "stream-optimised" : "sparse" };
}

function vhd(v, at) {
  const kind = v.getUint32(at + 60);
  const found = { format: "vhd", size: v.getBigUint64(at + 48), detail: { 2: "fixed", 3: "dynamic" }[kind] || "" };
  return kind === 4 ? { ...found, refusal: "The image is an overlay over another file. Export it as a whole disk." } : found;
}

const METADATA = "8b7ca206-4790-4b9a-b8fe-575f050f886e";
const DISK_SIZE = "2fa54224-cd1b-4876-b211-5dbed83bf4b8";

function guid(data, offset) {
  const hex = (from, to, step) => {
    let text = "";
    for (let i = from; i !== to; i += step) text += data[offset + i].toString(16).padStart(2, "0");
    return text;
  };
  return `${hex(3, -1, -1)}-${hex(5, 3, -1)}-${hex(7, 5, -1)}-${hex(8, 10, 1)}-${hex(10, 16, 1)}`;
}

/** By MS-VHDX: the region table names the metadata's place, its table the size's. */
async function vhdx(file) {
  const regions = await read(file, 192 << 10, HEAD);
  if (ascii(regions, 0, 4) !== "regi") return null;
  const r = view(regions);
  for (let i = 0; i < Math.min(r.getUint32(8, true), 2047); i += 1) {
    const at = 16 + 32 * i;
    if (guid(regions, at) !== METADATA) continue;
    const place = Number(r.getBigUint64(at + 16, true));
    const table = await read(file, place, HEAD);
    if (ascii(table, 0, 8) !== "metadata") return null;
    const t = view(table);
    for (let j = 0; j < Math.min(t.getUint16(10, true), 2047); j += 1) {
      const entry = 32 + 32 * j;
      if (guid(table, entry) !== DISK_SIZE) continue;
      return view(await read(file, place + t.getUint32(entry + 16, true), 8)).getBigUint64(0, true);
    }
  }
  return null;
}

function raw(head, length) {
  const size = length === null ? null : ((length + 511n) / 512n) * 512n;
  if (ascii(head, 0x8001, 5) === "CD001") return { format: "iso", size };
  if (ascii(head, 257, 5) === "ustar") {
    return { format: "tar", size: null, refusal: "This is a tar archive. Use cdi upload --content-type archive to unpack it into a volume." };
  }
  const gpt = ascii(head, 512, 8) === "EFI PART" || ascii(head, 4096, 8) === "EFI PART";
  const mbr = head[510] === 0x55 && head[511] === 0xaa;
  const fs = head[0x438] === 0x53 && head[0x439] === 0xef ? "an ext file system" : ascii(head, 0, 4) === "XFSB" ? "an XFS file system" : "";
  const detail = gpt ? "GPT partitions" : mbr ? "MBR partitions" : fs;
  const warning = detail ? "" : "No partition table or file system was recognised. Check that this is a disk image.";
  return { format: "raw", size, detail, warning };
}

// --- wrapped --------------------------------------------------------------------------------------------------------

/** Where the inner image cannot be looked at here, what the wrapper says of its length. */
async function unwrapped(file, head, wrapper) {
  if (wrapper === "gzip") {
    const inner = await inflated(file);
    if (inner === null) return { refusal: "The gzip data cannot be read." };
    if (inner.length < 512) return { refusal: "The content is too short to be an image." };
    const found = await image(null, inner, null);
    return found.format === "raw" || found.format === "iso" ? { ...found, warning: found.warning || SIZE_UNKNOWN } : found;
  }
  const length = wrapper === "xz" ? await xzLength(file) : zstLength(head);
  const known = length === null ? "" : "The size is that of a raw image. If it contains a qcow2 image, enter the size of its disk.";
  return { format: "", size: length, detail: "inspected by the server", warning: known || SIZE_UNKNOWN };
}

const SIZE_UNKNOWN = "The size of the disk is not known before all of it is unpacked. Enter a size that is large enough.";

/** The first bytes of what is in a gzip file; null where it is broken. */
async function inflated(file) {
  const reader = file.slice(0, DEEP).stream().pipeThrough(new DecompressionStream("gzip")).getReader();
  const pieces = [];
  let count = 0;
  try {
    while (count < HEAD) {
      const { done, value } = await reader.read();
      if (done) break;
      pieces.push(value);
      count += value.length;
    }
  } catch {
    // Cut off where the slice ends, which is no matter once there is enough.
    if (count === 0) return null;
  }
  reader.cancel().catch(() => {});
  const joined = new Uint8Array(count);
  let at = 0;
  for (const piece of pieces) {
    joined.set(piece, at);
    at += piece.length;
  }
  return joined.subarray(0, Math.min(count, HEAD));
}

/** The uncompressed length of an xz file of one stream, out of its index (the .xz format, 4). */
async function xzLength(file) {
  if (file.size < 32) return null;
  const foot = await read(file, file.size - 12, 12);
  if (foot[10] !== 0x59 || foot[11] !== 0x5a) return null;
  const length = (view(foot).getUint32(4, true) + 1) * 4;
  if (length > 16 << 20 || length > file.size - 24) return null;
  const index = await read(file, file.size - 12 - length, length);
  let at = 1;
  const number = () => {
    let value = 0n;
    for (let shift = 0n; shift < 63n; shift += 7n) {
      const byte = index[at];
      at += 1;
      if (byte === undefined) return null;
      value |= BigInt(byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
    return null;
  };
  if (index[0] !== 0) return null;
  const records = number();
  let total = 0n;
  let packed = 0n;
  for (let i = 0n; i < records; i += 1n) {
    const unpadded = number();
    const size = number();
    if (unpadded === null || size === null) return null;
    packed += (unpadded + 3n) & ~3n;
    total += size;
  }
  // More streams before this one would make it longer.
  return packed + BigInt(length) + 24n === BigInt(file.size) ? total : null;
}

/** What the first frame's header says (RFC 8878, 3.1.1.1); null where it does not. */
function zstLength(head) {
  const descriptor = head[4];
  const single = (descriptor & 0x20) !== 0;
  const code = descriptor >> 6;
  if (code === 0 && !single) return null;
  const at = 5 + (single ? 0 : 1) + [0, 1, 2, 4][descriptor & 3];
  const v = view(head);
  if (code === 0) return BigInt(v.getUint8(at));
  if (code === 1) return BigInt(v.getUint16(at, true)) + 256n;
  return code === 2 ? BigInt(v.getUint32(at, true)) : v.getBigUint64(at, true);
}
