// Numbers as people read them.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
const MEBI = 1n << 20n;

/** 10 GiB, 1.5 GiB, 700 B: three significant digits, binary units. */
export function bytes(count) {
  let value = Number(count);
  let unit = 0;
  while (value >= 999.5 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? value : Number(value.toPrecision(3))} ${UNITS[unit]}`;
}

export function rate(perSecond) {
  return `${bytes(Math.round(perSecond))}/s`;
}

/** 45 s, 3 min 12 s, 5 h 4 min. */
export function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

export function percent(fraction) {
  // Never 100 % before it is done.
  return `${Math.min(99, Math.floor(fraction * 100))} %`;
}

/** The shortest Kubernetes quantity of at least so many bytes (a BigInt), in whole mebibytes. */
export function quantity(size) {
  let value = (size + MEBI - 1n) / MEBI || 1n;
  let unit = "Mi";
  for (const next of ["Gi", "Ti"]) {
    if (value % 1024n !== 0n) break;
    value /= 1024n;
    unit = next;
  }
  return `${value}${unit}`;
}

const FACTORS = {
  "": 1, k: 1e3, M: 1e6, G: 1e9, T: 1e12, P: 1e15,
  Ki: 2 ** 10, Mi: 2 ** 20, Gi: 2 ** 30, Ti: 2 ** 40, Pi: 2 ** 50,
};

/** Bytes of a Kubernetes quantity, or null where the text is none. */
export function parseQuantity(text) {
  const match = /^\s*([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([kMGTP]?|[KMGTP]i)B?\s*$/.exec(text);
  const factor = match && FACTORS[match[2]];
  return factor ? Number(match[1]) * factor : null;
}

/** The same without the blanks and the B that people write. */
export function normalQuantity(text) {
  return text.replace(/\s+/g, "").replace(/B$/, "");
}

const NAME = /^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$/;

export function isName(text) {
  return text.length <= 253 && NAME.test(text);
}

/** A name for a volume out of a file's name. */
export function nameOf(file) {
  const plain = file
    .toLowerCase()
    .replace(/(\.(gz|xz|zst|zstd|qcow2|qcow|raw|img|iso|vmdk|vdi|vhdx?|tar))+$/, "")
    .replace(/[^a-z0-9]+/g, "-")
    .slice(0, 63)
    .replace(/^-+|-+$/g, "");
  return plain || "image";
}
