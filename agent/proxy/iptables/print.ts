import { canonicalRule } from "./canonical.ts";

// Odd multipliers and final mixing of cyrb53 and MurmurHash3: well spread, and fast on short strings.
const multiplierA = 2_654_435_761;
const multiplierB = 1_597_334_677;

/**
 * 53 bits of hash that stand for a text: texts would be kept only to be compared, and are ten times as big.
 * At 100 000 chains, one comparison goes wrong in 10^16.
 */
export function fingerprint(text: string, seed = 0): number {
  let a = 0xdeadbeef ^ seed;
  let b = 0x41c6ce57 ^ Math.floor(seed / 4_294_967_296);
  for (let i = 0; i < text.length; i++) {
    const code = text.charCodeAt(i);
    a = Math.imul(a ^ code, multiplierA);
    b = Math.imul(b ^ code, multiplierB);
  }
  a = Math.imul(a ^ (a >>> 16), 2_246_822_507) ^ Math.imul(b ^ (b >>> 13), 3_266_489_909);
  b = Math.imul(b ^ (b >>> 16), 2_246_822_507) ^ Math.imul(a ^ (a >>> 13), 3_266_489_909);
  return 4_294_967_296 * (2_097_151 & b) + (a >>> 0);
}

/** Stands for the rules of a chain, as we write them or as iptables-save lists them: equal prints mean equal chains. */
export function chainPrint(rules: readonly string[]): number {
  return rules.reduce(addToPrint, 0);
}

/** The print of a chain with one more rule at its end. */
export function addToPrint(print: number, rule: string): number {
  return fingerprint(canonicalRule(rule), print);
}
