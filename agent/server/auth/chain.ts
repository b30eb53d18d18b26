import type { Certificate } from "./certificate.ts";
import { allowsNames } from "./name-constraints.ts";

/** Whether a certificate speaks for its owner: the chain found, the leaf first and the root last, or why there is none. */
export type ChainVerdict = { readonly chain: readonly Certificate[] } | { readonly error: string };

// Real chains have one to three certificates between leaf and root. What a client sends beyond this is not looked at.
export const intermediatesMax = 10;
// Each costs some tenths of a millisecond. Go's verifier stops after as many.
export const signatureChecksMax = 100;

const clientAuth = "1.3.6.1.5.5.7.3.2";
const anyPurpose = "2.5.29.37.0";

// What is as good as unforgeable: RSA and ECDSA with SHA-2, RSA-PSS, Ed25519. SHA-1 and MD5 are not.
const signatureAlgorithms: readonly string[] = [
  "1.2.840.113549.1.1.11", // sha256WithRSAEncryption
  "1.2.840.113549.1.1.12", // sha384WithRSAEncryption
  "1.2.840.113549.1.1.13", // sha512WithRSAEncryption
  "1.2.840.113549.1.1.10", // RSASSA-PSS
  "1.2.840.10045.4.3.2", // ecdsa-with-SHA256
  "1.2.840.10045.4.3.3", // ecdsa-with-SHA384
  "1.2.840.10045.4.3.4", // ecdsa-with-SHA512
  "1.3.101.112", // Ed25519
];

/**
 * Looks for a chain from `leaf` over some of `intermediates` to one of `roots` that lets the leaf's owner act as a client
 * at `nowMs`. Pure.
 *
 * The search goes from the roots down. So every signature is checked with the key of a certificate that is trusted
 * already: keys that a stranger made up are never used, however slow they are, and however many paths they pretend to.
 */
export function verifyClient(
  leaf: Certificate,
  intermediates: readonly Certificate[],
  roots: readonly Certificate[],
  nowMs: number,
): ChainVerdict {
  const ownProblem = problemOf(leaf, nowMs) ?? purposeProblem(leaf);
  if (ownProblem !== undefined) return { error: `the client certificate ${ownProblem}` };
  if (roots.some((root) => isSame(root, leaf))) return { chain: [leaf] };

  const known = intermediates.slice(0, intermediatesMax);
  let checks = 0;
  let nearest = "is signed by no authority that is trusted here";
  const isSignedBy = (child: Certificate, parent: Certificate): boolean => {
    checks += 1;
    return checks <= signatureChecksMax && hasSignature(child, parent);
  };
  /** `path` begins with the root and ends with a certificate that may issue others. */
  const extend = (path: readonly Certificate[]): readonly Certificate[] | undefined => {
    const parent = path.at(-1);
    if (parent === undefined) return undefined;
    if (leaf.issuer.equals(parent.subject) && isSignedBy(leaf, parent)) {
      const chain = [leaf, ...path.toReversed()];
      const problem = chainProblem(chain);
      if (problem === undefined) return chain;
      nearest = problem;
    }
    for (const next of known) {
      if (!next.issuer.equals(parent.subject) || path.some((one) => isSame(one, next))) continue;
      const problem = problemOf(next, nowMs) ?? authorityProblem(next) ?? purposeProblem(next);
      if (problem !== undefined) {
        nearest = `has an intermediate certificate that ${problem}`;
      } else if (isSignedBy(next, parent)) {
        const chain = extend([...path, next]);
        if (chain !== undefined) return chain;
      }
    }
    return undefined;
  };

  for (const root of roots) {
    const problem = problemOf(root, nowMs) ?? rootProblem(root) ?? purposeProblem(root);
    if (problem === undefined) {
      const chain = extend([root]);
      if (chain !== undefined) return { chain };
    } else if (root.subject.equals(leaf.issuer)) {
      nearest = `has an authority that ${problem}`;
    }
  }
  return { error: `the client certificate ${nearest}` };
}

/** True if they are the same certificate. */
function isSame(a: Certificate, b: Certificate): boolean {
  return a.x509.raw.equals(b.x509.raw);
}

function problemOf({ notBeforeMs, notAfterMs, unknownCritical }: Certificate, nowMs: number): string | undefined {
  if (nowMs < notBeforeMs) return `is not valid before ${new Date(notBeforeMs).toISOString()}`;
  if (nowMs > notAfterMs) return `expired at ${new Date(notAfterMs).toISOString()}`;
  if (unknownCritical.length > 0) return `has the critical extension ${unknownCritical[0]}, which is not understood`;
  return undefined;
}

function purposeProblem({ purposes }: Certificate): string | undefined {
  const isFine = purposes === undefined || purposes.includes(clientAuth) || purposes.includes(anyPurpose);
  return isFine ? undefined : "is not for client authentication";
}

function authorityProblem(certificate: Certificate): string | undefined {
  return certificate.basicConstraints === undefined ? "is not an authority" : rootProblem(certificate);
}

/** Only a root may be of a version that could not say yet that it is an authority. */
function rootProblem({ version, basicConstraints, keyUsage }: Certificate): string | undefined {
  const isAuthority = basicConstraints === undefined ? version < 3 : basicConstraints.isCA;
  if (!isAuthority) return "is not an authority";
  return keyUsage?.maySignCertificates === false ? "may not sign certificates" : undefined;
}

/** What is wrong with a chain, leaf first, whose signatures are right. */
function chainProblem(chain: readonly Certificate[]): string | undefined {
  for (const [i, { basicConstraints, nameConstraints }] of chain.entries()) {
    if (i === 0) continue;
    const pathLength = basicConstraints?.pathLength;
    if (pathLength !== undefined && i - 1 > pathLength) return "has more authorities above it than one of them allows";
    if (nameConstraints === undefined) continue;
    const isAllowed = chain
      .slice(0, i)
      .every(({ names }) => names === undefined || allowsNames(nameConstraints, names));
    if (!isAllowed) return "has a name that one of its authorities may not issue for";
  }
  return undefined;
}

function hasSignature(child: Certificate, parent: Certificate): boolean {
  if (!signatureAlgorithms.includes(child.signatureAlgorithm)) return false;
  try {
    return child.x509.verify(parent.x509.publicKey);
  } catch {
    return false; // a key that the library does not know, or that does not fit the algorithm
  }
}
