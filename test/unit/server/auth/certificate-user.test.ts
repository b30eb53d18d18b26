import { describe, expect, test } from "vitest";
import { readBundle } from "../../../../agent/server/auth/certificate.ts";
import { certificateUser } from "../../../../agent/server/auth/certificate-user.ts";
import { der } from "../../../support/apiserver/der.ts";
import { cn, issue, issueAuthority, name, oid, rdns, sha256 } from "./certificates.ts";

// OpenSSL refuses some malformed names by itself; ours have to do without it.
const { certificate } = issue();
const userOf = (subject: Buffer, readsUID = true) => certificateUser({ ...certificate, subject }, readsUID);
const text = (tag: number, bytes: Uint8Array) => Buffer.concat([Buffer.of(tag, bytes.length), bytes]);
const commonName = (value: Buffer) => rdns([[oid.commonName, value]]);

describe("certificateUser", () => {
  test("name, groups and what the audit log wants to know", () => {
    const issued = issue({
      subject: name(
        [oid.organization, "system:masters"],
        [oid.organization, "b"],
        [oid.commonName, "kubernetes-admin"],
      ),
    });
    expect(certificateUser(issued.certificate, true)).toEqual({
      username: "kubernetes-admin",
      uid: "",
      groups: ["system:masters", "b"],
      extra: {
        "authentication.kubernetes.io/credential-id": [`X509SHA256=${sha256(issued.certificate.x509.raw)}`],
      },
    });
  });

  const names: { name: string; subject: Buffer; username: string; groups?: string[] }[] = [
    {
      name: "text that looks like a name's notation is only text",
      subject: name([oid.commonName, "a,O=system:masters\nO=system:masters+O=x\\"], [oid.organization, "x,CN=admin"]),
      username: "a,O=system:masters\nO=system:masters+O=x\\",
      groups: ["x,CN=admin"],
    },
    {
      name: "a relative name with several values",
      subject: rdns([
        [oid.organization, der.utf8("g1")],
        [oid.organization, der.utf8("g2")],
        [oid.commonName, der.utf8("multi")],
      ]),
      username: "multi",
      groups: ["g1", "g2"],
    },
    { name: "the last common name counts", subject: name([oid.commonName, "a"], [oid.commonName, "b"]), username: "b" },
    { name: "UTF-8", subject: cn("jürgen 🚀"), username: "jürgen 🚀" },
    {
      name: "PrintableString",
      subject: commonName(text(0x13, Buffer.from("system:node:n1"))),
      username: "system:node:n1",
    },
    { name: "IA5String", subject: commonName(text(0x16, Buffer.from("a@b"))), username: "a@b" },
    { name: "T61String", subject: commonName(text(0x14, Buffer.of(0x61, 0xe9))), username: "aé" },
    { name: "BMPString", subject: commonName(text(0x1e, Buffer.of(0, 0x61, 0x20, 0xac))), username: "a€" },
    { name: "a NUL in it does not end it", subject: cn("admin\0.example.com"), username: "admin\0.example.com" },
  ];
  for (const { name: title, subject, username, groups = [] } of names) {
    test(`names: ${title}`, () => expect(userOf(subject)).toMatchObject({ username, groups }));
  }

  test("is nobody without a common name, with an empty one, or with one that is no text", () => {
    expect(userOf(name([oid.organization, "system:masters"]))).toBeUndefined();
    expect(userOf(cn(""))).toBeUndefined();
    expect(userOf(commonName(der.integer(Buffer.of(1))))).toBeUndefined();
    expect(userOf(rdns())).toBeUndefined();
  });

  const malformed: { name: string; value: Buffer }[] = [
    { name: "UTF8String", value: text(0x0c, Buffer.of(0xff, 0x61)) },
    { name: "PrintableString", value: text(0x13, Buffer.from("a@b")) },
    { name: "IA5String", value: text(0x16, Buffer.of(0xe9)) },
    { name: "BMPString", value: text(0x1e, Buffer.of(0xd8, 0x00)) },
  ];
  for (const { name: title, value } of malformed) {
    test(`refuses a malformed ${title}`, () => expect(() => userOf(commonName(value))).toThrow(title));
  }

  test("takes exactly one UID that is not empty, if it is asked to", () => {
    const withUIDs = (...values: Buffer[]) =>
      rdns([[oid.commonName, der.utf8("u")]], ...values.map((value) => [[oid.uid, value]] as const));
    expect(userOf(withUIDs(der.utf8("1234")))?.uid).toBe("1234");
    expect(userOf(withUIDs(der.utf8("1234")), false)?.uid).toBe("");
    expect(() => userOf(withUIDs(der.utf8("1"), der.utf8("1")))).toThrow("more than one UID");
    expect(() => userOf(withUIDs(der.utf8("")))).toThrow("UID is empty");
    expect(() => userOf(withUIDs(der.integer(Buffer.of(1))))).toThrow("no text");
    expect(userOf(withUIDs(der.utf8(""), der.utf8("x")), false)?.uid).toBe("");
  });
});

describe("readBundle", () => {
  const a = issueAuthority("a");
  const b = issueAuthority("b");
  test("reads every certificate and leaves out the rest", () => {
    const bundle = readBundle(Buffer.from(`# comment\r\n${a.pem.replaceAll("\n", "\r\n")}${b.keyPem}\n${b.pem}`));
    expect(bundle.map(({ x509 }) => x509.subject)).toEqual(["CN=a", "CN=b"]);
  });

  test("refuses an empty file, a cut one and one with a broken certificate", () => {
    expect(() => readBundle(Buffer.from(""))).toThrow("there is no PEM certificate in it");
    expect(() => readBundle(Buffer.from(a.pem.slice(0, 200)))).toThrow("certificate 1 of 1 is cut off");
    const broken = b.pem.replace(/\n[^\n]{64}\n/, "\n");
    expect(() => readBundle(Buffer.from(a.pem + broken))).toThrow("certificate 2 of 2 cannot be read");
    expect(() => readBundle(Buffer.from(a.pem + b.pem.slice(0, 200)))).toThrow("certificate 2 of 2 is cut off");
  });
});
