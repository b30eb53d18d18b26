import { hash } from "node:crypto";

// RFC 4648 base32, without padding.
const base32Alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/** First characters of the base32 form of the SHA-256 of `text`, five bits each: what kube-proxy names chains by. */
export function base32Hash(text: string, length: number): string {
  const digest = hash("sha256", text, "buffer");
  let out = "";
  let buffered = 0;
  let bits = 0;
  for (let i = 0; out.length < length; i++) {
    buffered = ((buffered << 8) | (digest[i] ?? 0)) & 0xfff;
    bits += 8;
    while (bits >= 5 && out.length < length) {
      bits -= 5;
      out += base32Alphabet[(buffered >> bits) & 31] ?? "";
    }
  }
  return out;
}
