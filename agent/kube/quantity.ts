import type { Quantity } from "./types.ts";

// Multipliers of resource.Quantity's suffixes, in nano units, so that "1n" is still whole.
const nano = 10n ** 9n;
const suffixes: Record<string, bigint> = {
  n: 1n,
  u: 10n ** 3n,
  m: 10n ** 6n,
  "": nano,
  k: nano * 10n ** 3n,
  M: nano * 10n ** 6n,
  G: nano * 10n ** 9n,
  T: nano * 10n ** 12n,
  P: nano * 10n ** 15n,
  E: nano * 10n ** 18n,
  Ki: nano << 10n,
  Mi: nano << 20n,
  Gi: nano << 30n,
  Ti: nano << 40n,
  Pi: nano << 50n,
  Ei: nano << 60n,
};

const form = /^([+-]?)(\d*)(?:\.(\d*))?(?:([eE])([+-]?\d{1,3})|([numkMGTPE]|[KMGTPE]i)?)$/;

/**
 * A quantity in nano units, rounded away from zero below that.
 * @returns undefined if `q` is not a quantity as apimachinery's resource.Quantity parses it
 */
export function parseQuantity(q: Quantity): bigint | undefined {
  const match = form.exec(String(q).trim());
  if (match === null) return undefined;
  const [, sign, whole = "", fraction = "", exponentMark, exponent, suffix = ""] = match;
  if (whole === "" && fraction === "") return undefined;
  let numerator = BigInt(`${whole}${fraction}` || "0");
  let denominator = 10n ** BigInt(fraction.length);
  if (exponentMark === undefined) {
    numerator *= suffixes[suffix] ?? nano;
  } else {
    const power = Number(exponent);
    numerator *= nano;
    if (power >= 0) numerator *= 10n ** BigInt(power);
    else denominator *= 10n ** BigInt(-power);
  }
  const magnitude = (numerator + denominator - 1n) / denominator;
  return sign === "-" ? -magnitude : magnitude;
}

/** Whole units (bytes, cores, pieces), rounded away from zero as `Quantity.Value()` does; 0 for absent or malformed. */
export function quantityValue(q: Quantity | undefined): number {
  return scaled(q, nano);
}

/** Thousandths (milli-CPU), rounded away from zero as `Quantity.MilliValue()` does; 0 for absent or malformed. */
export function quantityMilli(q: Quantity | undefined): number {
  return scaled(q, 10n ** 6n);
}

/** Bytes as the API writes node memory: `16384256Ki`, or plain digits when not a multiple of 1024. */
export function formatBytesKi(bytes: number): string {
  return bytes % 1024 === 0 ? `${bytes / 1024}Ki` : String(bytes);
}

/** Milli-CPU as the API writes it: `2`, `1500m`. */
export function formatMilliCPU(milli: number): string {
  return milli % 1000 === 0 ? String(milli / 1000) : `${milli}m`;
}

function scaled(q: Quantity | undefined, unit: bigint): number {
  if (q === undefined) return 0;
  const n = parseQuantity(q);
  if (n === undefined) return 0;
  return Number(n >= 0n ? (n + unit - 1n) / unit : -((-n + unit - 1n) / unit));
}
