import { createPrivateKey, X509Certificate } from "node:crypto";
import { isIP } from "node:net";
import { AgentError, messageOf } from "../../lib/errors.ts";
import type { CertificateTemplate } from "./x509.ts";

/** A certificate with its key, checked to fit each other. The key is secret. */
export interface CertificatePair {
  /** PEM: the holder's certificate, then those that lead to the authority. */
  readonly cert: Buffer;
  /** PEM. */
  readonly key: Buffer;
  /** Unix ms. */
  readonly notBeforeMs: number;
  readonly notAfterMs: number;
  /** The holder's certificate, parsed. */
  readonly leaf: X509Certificate;
}

const certificateBlock = /-----BEGIN CERTIFICATE-----[\s\S]+?-----END CERTIFICATE-----/g;
const keyBlock = /-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----[\s\S]+?-----END (?:[A-Z]+ )?PRIVATE KEY-----/;

/**
 * Reads the certificates and the first private key of PEM texts, which may be one and the same. Other blocks are left out.
 * Throws Invalid, with a message that shows nothing of the key, if one is missing or malformed or they do not fit.
 */
export function parsePair(certText: string, keyText: string): CertificatePair {
  const blocks = certText.match(certificateBlock) ?? [];
  const [first] = blocks;
  if (first === undefined) throw new AgentError("Invalid", "there is no PEM certificate in it");
  const leaf = parseCertificate(first);
  for (const block of blocks.slice(1)) parseCertificate(block);
  const keyPem = keyBlock.exec(keyText)?.[0];
  if (keyPem === undefined) throw new AgentError("Invalid", "there is no PEM private key in it");
  let fits: boolean;
  try {
    fits = leaf.checkPrivateKey(createPrivateKey(keyPem));
  } catch {
    throw new AgentError("Invalid", "its private key is malformed or encrypted");
  }
  if (!fits) throw new AgentError("Invalid", "its certificate was made for another private key");
  return {
    cert: Buffer.from(`${blocks.join("\n")}\n`),
    key: Buffer.from(`${keyPem}\n`),
    notBeforeMs: leaf.validFromDate.getTime(),
    notAfterMs: leaf.validToDate.getTime(),
    leaf,
  };
}

/** All certificates of a PEM text. Throws Invalid if there is none, or one is malformed. */
export function parseCertificates(text: string): X509Certificate[] {
  const blocks = text.match(certificateBlock) ?? [];
  if (blocks.length === 0) throw new AgentError("Invalid", "there is no PEM certificate in it");
  return blocks.map(parseCertificate);
}

function parseCertificate(pem: string): X509Certificate {
  try {
    return new X509Certificate(pem);
  } catch (err) {
    throw new AgentError("Invalid", `a certificate in it is malformed: ${messageOf(err)}`, { cause: err });
  }
}

/**
 * What `leaf` lacks of `template`, for people; undefined if it fits: the same common name, and at least the wanted
 * organizations, DNS names and addresses. Pure.
 */
export function templateMismatch(leaf: X509Certificate, template: CertificateTemplate): string | undefined {
  const { CN, O } = leaf.toLegacyObject().subject as { CN?: string | string[]; O?: string | string[] };
  const [commonName] = [CN].flat();
  if (commonName !== template.commonName) return `its common name is ${commonName ?? "missing"}`;
  const organizations = [O].flat();
  const organization = template.organizations.find((name) => !organizations.includes(name));
  if (organization !== undefined) return `it lacks the organization ${organization}`;
  const host = { subject: "never", wildcards: false } as const;
  const missing = [
    ...template.dnsNames.filter((name) => leaf.checkHost(name, host) === undefined),
    ...template.ips.filter((ip) => isIP(ip) === 0 || leaf.checkIP(ip) === undefined),
  ];
  return missing.length === 0 ? undefined : `it lacks ${missing.join(", ")}`;
}
