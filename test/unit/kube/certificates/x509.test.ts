import { X509Certificate } from "node:crypto";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { parsePair, templateMismatch } from "../../../../agent/kube/certificates/pair.ts";
import { buildCertificate, buildSigningRequest, createKey, keyPem } from "../../../../agent/kube/certificates/x509.ts";
import { der, ipBytes } from "../../../../agent/lib/der.ts";
import { exec } from "../../../../agent/lib/exec.ts";

let dir: string;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "nodelet-x509-"));
});
afterAll(async () => rm(dir, { recursive: true }));

/** openssl's opinion of a PEM text. */
async function openssl(pem: string, ...args: string[]): Promise<{ text: string; ok: boolean }> {
  const { stdout, stderr, failure } = await exec("openssl", args, { stdin: pem, timeoutMs: 5_000 });
  return { text: stdout + stderr, ok: failure === undefined };
}

const client = { commonName: "system:node:n1", organizations: ["system:nodes"], dnsNames: [], ips: [] };
const server = { ...client, dnsNames: ["n1", "n1.example"], ips: ["10.0.0.7", "fd00::1:2"] };
const dayMs = 24 * 3_600_000;

describe("a signing request", () => {
  test("of a client: subject, key and signature are what openssl expects, and nothing else is asked for", async () => {
    const key = await createKey();
    const pem = buildSigningRequest(client, key);
    const { text, ok } = await openssl(pem, "req", "-noout", "-text", "-verify", "-nameopt", "RFC2253");
    expect(ok).toBe(true);
    expect(text).toMatch(/self-signature verify OK/i);
    expect(text).toContain("Subject: CN=system:node:n1,O=system:nodes");
    expect(text).toContain("NIST CURVE: P-256");
    expect(text).not.toMatch(/DNS:|IP Address:|Alternative Name/);
    expect(keyPem(key.privateKey)).toMatch(/^-----BEGIN EC PRIVATE KEY-----\n/);
  });

  test("of a server names it by DNS names and addresses", async () => {
    const { text, ok } = await openssl(
      buildSigningRequest(server, await createKey()),
      "req",
      "-noout",
      "-text",
      "-verify",
    );
    expect(ok).toBe(true);
    expect(text).toContain("DNS:n1, DNS:n1.example, IP Address:10.0.0.7, IP Address:FD00:0:0:0:0:0:1:2");
  });

  test("with names longer than one length byte is well-formed", async () => {
    const organizations = Array.from({ length: 40 }, (_, i) => `group-${i}-${"x".repeat(50)}`);
    const dnsNames = Array.from({ length: 300 }, (_, i) => `name-${i}.${"y".repeat(60)}.example`);
    const pem = buildSigningRequest({ ...client, organizations, dnsNames }, await createKey());
    const { text, ok } = await openssl(pem, "req", "-noout", "-text", "-verify");
    expect(ok).toBe(true);
    expect(text).toContain("name-299.");
  });
});

describe("a certificate", () => {
  test("of an own authority verifies for its names, and only for serving", async () => {
    const [authority, holder] = await Promise.all([createKey(), createKey()]);
    const nowMs = Date.now();
    const name = { ...client, commonName: "n1-ca" };
    const common = {
      issuer: { name, key: authority.privateKey },
      notBeforeMs: nowMs - dayMs,
      notAfterMs: nowMs + dayMs,
    };
    const ca = buildCertificate({ ...common, template: name, publicKey: authority.publicKey, isAuthority: true });
    const cert = buildCertificate({ ...common, template: server, publicKey: holder.publicKey, isAuthority: false });
    const caPath = join(dir, "ca.crt");
    await writeFile(caPath, ca);
    const verify = (...more: string[]) =>
      openssl(cert, "verify", "-x509_strict", "-CAfile", caPath, "-partial_chain", ...more);
    expect(await verify("-purpose", "sslserver", "-verify_hostname", "n1.example")).toMatchObject({ ok: true });
    expect(await verify("-verify_ip", "fd00::1:2")).toMatchObject({ ok: true });
    expect(await verify("-verify_ip", "10.0.0.8")).toMatchObject({ ok: false });
    expect(await verify("-purpose", "sslclient")).toMatchObject({ ok: false });
  });

  test.each([
    { at: Date.UTC(2049, 11, 31, 23, 59, 59), tag: 0x17, text: "491231235959Z" },
    { at: Date.UTC(2050, 0, 1), tag: 0x18, text: "20500101000000Z" },
  ])("has times in the form for their year: $text", ({ at, tag, text }) => {
    const encoded = der.time(at);
    expect(encoded[0]).toBe(tag);
    expect(encoded.subarray(2).toString()).toBe(text);
  });

  test("that is valid beyond 2050 says so", async () => {
    const key = await createKey();
    const notAfterMs = Date.UTC(2071, 4, 6, 7, 8, 9);
    const issuer = { name: client, key: key.privateKey };
    const pem = buildCertificate({
      template: client,
      publicKey: key.publicKey,
      issuer,
      isAuthority: false,
      notBeforeMs: Date.UTC(2026, 0, 1),
      notAfterMs,
    });
    expect(new X509Certificate(pem).validToDate.getTime()).toBe(notAfterMs);
  });
});

describe("integers", () => {
  test.each([
    { bytes: [0], want: "020100" },
    { bytes: [0, 0], want: "020100" },
    { bytes: [0x7f], want: "02017f" },
    { bytes: [0x80], want: "02020080" },
    { bytes: [0, 0, 0x81, 0], want: "0203008100" },
  ])("$bytes is $want", ({ bytes, want }) => {
    expect(der.integer(Buffer.from(bytes)).toString("hex")).toBe(want);
  });
});

describe("addresses", () => {
  test.each([
    { text: "192.0.2.1", want: "c0000201" },
    { text: "::", want: "00".repeat(16) },
    { text: "2001:db8::1", want: `20010db8${"00".repeat(11)}01` },
    { text: "::ffff:192.0.2.1", want: `${"00".repeat(10)}ffffc0000201` },
    { text: "1:2:3:4:5:6:7:8", want: "00010002000300040005000600070008" },
    { text: "fe80::1%eth0", want: undefined },
    { text: "n1", want: undefined },
    { text: "10.0.0.256", want: undefined },
  ])("$text is $want", ({ text, want }) => {
    expect(ipBytes(text)?.toString("hex")).toBe(want);
  });
});

describe("what a certificate lacks of what is wanted", () => {
  let leaf: X509Certificate;
  beforeAll(async () => {
    const key = await createKey();
    const issuer = { name: client, key: key.privateKey };
    const validity = { notBeforeMs: Date.now(), notAfterMs: Date.now() + dayMs };
    const template = { ...server, organizations: ["system:nodes", "more"] };
    const options = { template, publicKey: key.publicKey, issuer, isAuthority: false, ...validity };
    leaf = new X509Certificate(buildCertificate(options));
  });

  test.each([
    { name: "nothing", template: server, want: undefined },
    { name: "nothing when fewer names are wanted", template: client, want: undefined },
    { name: "nothing when case differs", template: { ...server, dnsNames: ["N1"] }, want: undefined },
    {
      name: "another common name",
      template: { ...client, commonName: "system:node:n2" },
      want: /common name is system:node:n1/,
    },
    { name: "an organization", template: { ...client, organizations: ["x"] }, want: /lacks the organization x/ },
    { name: "a DNS name", template: { ...server, dnsNames: ["n1", "n2"] }, want: /^it lacks n2$/ },
    { name: "an address", template: { ...server, ips: ["10.0.0.8", "fd00::1:2"] }, want: /^it lacks 10.0.0.8$/ },
  ])("$name", ({ template, want }) => {
    const got = templateMismatch(leaf, template);
    if (want === undefined) expect(got).toBeUndefined();
    else expect(got).toMatch(want);
  });
});

describe("a pair of PEM texts", () => {
  test.each([
    { name: "no certificate", cert: "nonsense", key: "own", want: /no PEM certificate/ },
    { name: "no key", cert: "own", key: "nonsense", want: /no PEM private key/ },
    { name: "a key of another certificate", cert: "own", key: "other", want: /made for another private key/ },
    { name: "a damaged certificate", cert: "damaged", key: "own", want: /certificate in it is malformed/ },
    { name: "a damaged key", cert: "own", key: "damaged", want: /private key is malformed/ },
  ])("with $name is refused, and nothing of a key is shown", async ({ cert, key, want }) => {
    const [own, other] = await Promise.all([createKey(), createKey()]);
    const issuer = { name: client, key: own.privateKey };
    const validity = { notBeforeMs: Date.now(), notAfterMs: Date.now() + dayMs };
    const options = { template: client, publicKey: own.publicKey, issuer, isAuthority: false, ...validity };
    const pem = buildCertificate(options);
    const certs: Record<string, string> = { own: pem, damaged: pem.replace(/^MII.{8}/m, "AAAAAAAA") };
    const keys: Record<string, string> = {
      own: keyPem(own.privateKey),
      other: keyPem(other.privateKey),
      damaged: "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n",
    };
    const parse = () => parsePair(certs[cert] ?? cert, keys[key] ?? key);
    expect(parse).toThrow(want);
    expect(parse).toThrow(expect.objectContaining({ code: "Invalid", message: expect.not.stringContaining("c2Vj") }));
  });
});
