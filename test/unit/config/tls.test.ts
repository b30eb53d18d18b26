import { createSecureContext } from "node:tls";
import { describe, expect, test } from "vitest";
import { checkTls, readTlsSettings, type TlsFields } from "../../../agent/config/tls.ts";

const fields = (more: Partial<TlsFields> = {}): TlsFields => ({
  tlsMinVersion: "",
  tlsCipherSuites: [],
  tlsCurvePreferences: [],
  ...more,
});

describe("readTlsSettings", () => {
  test("without anything configured: TLS 1.2 and 1.3 with suites that count as secure", () => {
    const { options, warnings } = readTlsSettings(fields());
    expect(options.minVersion).toBe("TLSv1.2");
    expect(options.ciphers).toContain("TLS_AES_128_GCM_SHA256");
    expect(options.ciphers).toContain("ECDHE-RSA-AES128-GCM-SHA256");
    expect(options.ciphers).not.toMatch(/(^|:)AES|SECLEVEL/);
    expect(options).not.toHaveProperty("ecdhCurve");
    expect(warnings).toEqual([]);
  });

  const cases: { name: string; fields: Partial<TlsFields>; options: object; warnings?: RegExp[] }[] = [
    {
      name: "configured suites replace the default, those of TLS 1.3 stay",
      fields: { tlsCipherSuites: ["TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305"] },
      options: {
        minVersion: "TLSv1.2",
        ciphers:
          "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256:ECDHE-RSA-AES256-GCM-SHA384:ECDHE-RSA-CHACHA20-POLY1305",
      },
    },
    {
      name: "an insecure suite works, with a warning",
      fields: { tlsCipherSuites: ["TLS_RSA_WITH_AES_128_CBC_SHA"] },
      options: { ciphers: expect.stringMatching(/:AES128-SHA$/) },
      warnings: [/TLS_RSA_WITH_AES_128_CBC_SHA is not secure$/],
    },
    {
      name: "a suite that OpenSSL has dropped is accepted, and what that means is said",
      fields: { tlsCipherSuites: ["TLS_RSA_WITH_RC4_128_SHA"] },
      options: { ciphers: "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256" },
      warnings: [/RC4_128_SHA is not secure, and is not offered/, /clients need TLS 1.3/],
    },
    {
      name: "naming suites of TLS 1.3 alone leaves none for TLS 1.2",
      fields: { tlsCipherSuites: ["TLS_AES_128_GCM_SHA256"] },
      options: { ciphers: "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256" },
      warnings: [/clients need TLS 1.3/],
    },
    {
      name: "old versions need OpenSSL's lowest level, and are warned of",
      fields: { tlsMinVersion: "VersionTLS10" },
      options: { minVersion: "TLSv1", ciphers: expect.stringMatching(/:@SECLEVEL=0$/) },
      warnings: [/VersionTLS10 allows/],
    },
    { name: "TLS 1.3 only", fields: { tlsMinVersion: "VersionTLS13" }, options: { minVersion: "TLSv1.3" } },
    {
      name: "curves come in our order, whatever theirs is",
      fields: { tlsCurvePreferences: [25, 4588, 23, 29] },
      options: { ecdhCurve: "X25519MLKEM768:X25519:P-256:P-521" },
    },
  ];
  for (const { name, fields: given, options, warnings = [] } of cases) {
    test(name, () => {
      const settings = readTlsSettings(fields(given));
      expect(settings.options).toMatchObject(options);
      expect(settings.warnings).toEqual(warnings.map((pattern) => expect.stringMatching(pattern)));
      expect(() => createSecureContext(settings.options)).not.toThrow();
    });
  }

  test("every suite and curve that is accepted is one that Node.js takes", () => {
    const [problem] = checkTls(fields({ tlsCipherSuites: ["x"] }));
    const names = /must be one of ([^"]*), not/.exec(problem?.message ?? "")?.[1]?.split(", ") ?? [];
    expect(names).toHaveLength(27);
    for (const name of names) {
      const { options } = readTlsSettings(fields({ tlsCipherSuites: [name] }));
      expect(() => createSecureContext(options), name).not.toThrow();
    }
    for (const id of [23, 24, 25, 29, 4587, 4588, 4589]) {
      expect(checkTls(fields({ tlsCurvePreferences: [id] }))).toEqual([]);
      const { options } = readTlsSettings(fields({ tlsCurvePreferences: [id] }));
      expect(() => createSecureContext(options), String(id)).not.toThrow();
    }
  });
});

describe("checkTls", () => {
  test("names the field, what is accepted, and what was probably meant", () => {
    const tlsCipherSuites = ["TLS_AES_128_GCM_SHA256", "TLS_RSA_WITH_AES_128_CBC_SHA1", "constructor"];
    expect(checkTls(fields({ tlsCipherSuites }))).toEqual([
      {
        path: "tlsCipherSuites[1]",
        message: expect.stringMatching(
          /^must be one of TLS_AES_128.*, not "TLS_RSA_WITH_AES_128_CBC_SHA1" \(did you mean "TLS_RSA_WITH_AES_128_CBC_SHA"\?\)$/,
        ),
      },
      { path: "tlsCipherSuites[2]", message: expect.stringMatching(/not "constructor"$/) },
    ]);
  });
});
