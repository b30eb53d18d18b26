import type { SecureContextOptions } from "node:tls";
import { type Problem, suggestion } from "./problems.ts";

/** The fields of KubeletConfiguration that this is about. */
export interface TlsFields {
  readonly tlsMinVersion: "" | "VersionTLS10" | "VersionTLS11" | "VersionTLS12" | "VersionTLS13";
  readonly tlsCipherSuites: readonly string[];
  readonly tlsCurvePreferences: readonly number[];
}

/** What these fields mean to Node.js. */
export interface TlsSettings {
  readonly options: Pick<SecureContextOptions, "minVersion" | "ciphers" | "ecdhCurve">;
  /** What an operator should know: for the log. */
  readonly warnings: readonly string[];
}

const versions = {
  "": "TLSv1.2",
  VersionTLS10: "TLSv1",
  VersionTLS11: "TLSv1.1",
  VersionTLS12: "TLSv1.2",
  VersionTLS13: "TLSv1.3",
} as const;

// IANA's names of the cipher suites that kubelet accepts, and OpenSSL's. A suite without the latter is one that no
// supported OpenSSL speaks any more.
const secureSuites: Readonly<Record<string, string>> = {
  TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256: "ECDHE-ECDSA-AES128-GCM-SHA256",
  TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256: "ECDHE-RSA-AES128-GCM-SHA256",
  TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384: "ECDHE-ECDSA-AES256-GCM-SHA384",
  TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384: "ECDHE-RSA-AES256-GCM-SHA384",
  TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256: "ECDHE-ECDSA-CHACHA20-POLY1305",
  TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256: "ECDHE-RSA-CHACHA20-POLY1305",
  TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA: "ECDHE-ECDSA-AES128-SHA",
  TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA: "ECDHE-RSA-AES128-SHA",
  TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA: "ECDHE-ECDSA-AES256-SHA",
  TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA: "ECDHE-RSA-AES256-SHA",
};
const legacyNames: Readonly<Record<string, string>> = {
  TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305: "ECDHE-ECDSA-CHACHA20-POLY1305",
  TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305: "ECDHE-RSA-CHACHA20-POLY1305",
};
const insecureSuites: Readonly<Record<string, string | undefined>> = {
  TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256: "ECDHE-ECDSA-AES128-SHA256",
  TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256: "ECDHE-RSA-AES128-SHA256",
  TLS_RSA_WITH_AES_128_GCM_SHA256: "AES128-GCM-SHA256",
  TLS_RSA_WITH_AES_256_GCM_SHA384: "AES256-GCM-SHA384",
  TLS_RSA_WITH_AES_128_CBC_SHA256: "AES128-SHA256",
  TLS_RSA_WITH_AES_128_CBC_SHA: "AES128-SHA",
  TLS_RSA_WITH_AES_256_CBC_SHA: "AES256-SHA",
  TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA: undefined,
  TLS_RSA_WITH_3DES_EDE_CBC_SHA: undefined,
  TLS_ECDHE_ECDSA_WITH_RC4_128_SHA: undefined,
  TLS_ECDHE_RSA_WITH_RC4_128_SHA: undefined,
  TLS_RSA_WITH_RC4_128_SHA: undefined,
};
// TLS 1.3 has these whatever the configuration says, which may name them nevertheless.
const tls13Suites = ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"];

// IANA's numbers of named groups that kubelet accepts, and OpenSSL's names, the preferred first.
const curves = new Map([
  [4588, "X25519MLKEM768"],
  [4587, "SecP256r1MLKEM768"],
  [4589, "SecP384r1MLKEM1024"],
  [29, "X25519"],
  [23, "P-256"],
  [24, "P-384"],
  [25, "P-521"],
]);

const suites: Readonly<Record<string, string | undefined>> = { ...secureSuites, ...legacyNames, ...insecureSuites };

/** What is wrong with the fields. Pure. */
export function checkTls({ tlsCipherSuites, tlsCurvePreferences }: TlsFields): Problem[] {
  const accepted = [...tls13Suites, ...Object.keys(suites)];
  const badSuites = tlsCipherSuites.flatMap((name, i) => {
    if (accepted.includes(name)) return [];
    const path = `tlsCipherSuites[${i}]`;
    return [{ path, message: `must be one of ${accepted.join(", ")}, not "${name}"${suggestion(name, accepted)}` }];
  });
  const known = [...curves.keys()].sort((a, b) => a - b);
  const badCurves = tlsCurvePreferences.flatMap((id, i) =>
    curves.has(id)
      ? []
      : [{ path: `tlsCurvePreferences[${i}]`, message: `must be one of ${known.join(", ")}, not ${id}` }],
  );
  return [...badSuites, ...badCurves];
}

/**
 * What the fields mean to Node.js. Pure. Expects values without problems: unknown ones are left out. Without cipher suites
 * in the configuration those are used that count as secure; without curves, the library's.
 */
export function readTlsSettings({ tlsMinVersion, tlsCipherSuites, tlsCurvePreferences }: TlsFields): TlsSettings {
  const minVersion = versions[tlsMinVersion];
  const isOld = minVersion === "TLSv1" || minVersion === "TLSv1.1";
  const wanted = tlsCipherSuites.length === 0 ? Object.keys(secureSuites) : tlsCipherSuites;
  const ciphers = new Set(wanted.flatMap((name) => suites[name] ?? []));
  // The versions before 1.2 sign with SHA-1, which OpenSSL does not do at its default level.
  const level = isOld ? ["@SECLEVEL=0"] : [];
  const ecdhCurve = [...curves].filter(([id]) => tlsCurvePreferences.includes(id)).map(([, name]) => name);
  return {
    options: {
      minVersion,
      // Node.js drops TLS 1.3 when none of its suites is named.
      ciphers: [...tls13Suites, ...ciphers, ...level].join(":"),
      ...(ecdhCurve.length === 0 ? {} : { ecdhCurve: ecdhCurve.join(":") }),
    },
    warnings: [
      ...tlsCipherSuites.flatMap((name) => warningOf(name)),
      ...(isOld ? [`tlsMinVersion ${tlsMinVersion} allows versions of TLS that are not secure`] : []),
      ...(ciphers.size === 0 ? ["tlsCipherSuites leaves nothing that works with TLS 1.2: clients need TLS 1.3"] : []),
    ],
  };
}

function warningOf(name: string): string[] {
  if (!Object.hasOwn(insecureSuites, name)) return [];
  const isKnown = insecureSuites[name] !== undefined;
  return [`tlsCipherSuites: ${name} is not secure${isKnown ? "" : ", and is not offered: OpenSSL has it no more"}`];
}
