import { describe, expect, test } from "vitest";
import type { Certificate } from "../../../../agent/server/auth/certificate.ts";
import { intermediatesMax, verifyClient } from "../../../../agent/server/auth/chain.ts";
import {
  cn,
  dayMs,
  ext,
  general,
  type Issued,
  issue,
  issueAuthority,
  issueClient,
  oid,
  startMs,
} from "./certificates.ts";

const root = issueAuthority("kubernetes");

interface Case {
  name: string;
  leaf: Issued;
  sent?: Issued[];
  roots?: Issued[];
  nowMs?: number;
  /** Length of the chain, or what is wrong. */
  want: number | RegExp;
}

function verify({ leaf, sent = [], roots = [root], nowMs = startMs }: Omit<Case, "name" | "want">) {
  const certificates = (issued: Issued[]): Certificate[] => issued.map(({ certificate }) => certificate);
  return verifyClient(leaf.certificate, certificates(sent), certificates(roots), nowMs);
}

function check(cases: Case[]): void {
  for (const { name, want, ...rest } of cases) {
    test(name, () => {
      const verdict = verify(rest);
      if (typeof want === "number") expect(verdict).toMatchObject({ chain: { length: want } });
      else expect(verdict).toEqual({ error: expect.stringMatching(want) });
    });
  }
}

const client = issueClient(root);
const sameName = issueAuthority("kubernetes");
const unknownAuthority = /signed by no authority that is trusted here/;

describe("a client certificate", () => {
  check([
    { name: "of the authority counts", leaf: client, want: 2 },
    { name: "of one authority of several counts", leaf: client, roots: [sameName, issueAuthority("x"), root], want: 2 },
    { name: "without extended key usage is for everything", leaf: issue({ issuer: root }), want: 2 },
    {
      name: "for any purpose counts",
      leaf: issue({ issuer: root, extensions: [ext.purposes(oid.anyPurpose)] }),
      want: 2,
    },
    {
      name: "for servers does not count",
      leaf: issue({ issuer: root, extensions: [ext.purposes(oid.serverAuth)] }),
      want: /^the client certificate is not for client authentication$/,
    },
    { name: "counts at its first millisecond", leaf: client, nowMs: startMs - dayMs, want: 2 },
    { name: "counts at its last millisecond", leaf: client, nowMs: startMs + dayMs, want: 2 },
    {
      name: "does not count before",
      leaf: client,
      nowMs: startMs - dayMs - 1,
      want: /is not valid before 2025-12-31T00:00:00.000Z/,
    },
    { name: "does not count after", leaf: client, nowMs: startMs + dayMs + 1, want: /expired at 2026-01-02/ },
    { name: "of nobody known does not count", leaf: issueClient(issueAuthority("other")), want: unknownAuthority },
    { name: "of an authority of the same name does not count", leaf: issueClient(sameName), want: unknownAuthority },
    {
      name: "that its owner signed with the authority's name does not count",
      leaf: issue({ issuerName: root.subject }),
      want: unknownAuthority,
    },
    {
      name: "that is self-signed and called as the authority does not count",
      leaf: issueAuthority("kubernetes"),
      want: unknownAuthority,
    },
    {
      name: "that says another issuer than its signer does not count",
      leaf: issueClient(root, { issuerName: cn("Kubernetes") }),
      want: unknownAuthority,
    },
    {
      name: "with a critical extension that nobody knows does not count",
      leaf: issueClient(root, { extensions: [ext.unknown(true)] }),
      want: /critical extension 1\.2\.3\.4/,
    },
    { name: "may have other extensions", leaf: issueClient(root, { extensions: [ext.unknown(false)] }), want: 2 },
    {
      name: "signed with SHA-1 does not count",
      leaf: issueClient(root, { algorithm: "sha1" }),
      want: unknownAuthority,
    },
    { name: "that is in the bundle itself counts", leaf: client, roots: [client], want: 1 },
    {
      name: "that is in the bundle itself still expires",
      leaf: client,
      roots: [client],
      nowMs: startMs + 2 * dayMs,
      want: /expired/,
    },
    { name: "counts nowhere without authorities", leaf: client, roots: [], want: unknownAuthority },
  ]);

  const edwards = issueAuthority("edwards", { algorithm: "ed25519" });
  check([
    {
      name: "may be signed with Ed25519",
      leaf: issueClient(edwards, { algorithm: "ed25519" }),
      roots: [edwards],
      want: 2,
    },
  ]);
});

describe("an authority", () => {
  const at = (options: Parameters<typeof issue>[0]) => issue({ subject: cn("odd"), ...options });
  const expired = issueAuthority("old", { notAfterMs: startMs - 1 });
  const servers = issueAuthority("servers", { extensions: [ext.purposes(oid.serverAuth)] });
  const plain = at({});
  const noAuthority = at({ extensions: [ext.noAuthority()] });
  const noSigner = at({ extensions: [ext.authority(), ext.keyUsage(false)] });
  const version1 = at({ version1: true });
  check([
    { name: "that has expired", leaf: issueClient(expired), roots: [expired], want: /has an authority that expired/ },
    { name: "for servers", leaf: issueClient(servers), roots: [servers], want: /authority that is not for client/ },
    { name: "that does not say it is one", leaf: issueClient(plain), roots: [plain], want: /is not an authority/ },
    { name: "that says it is none", leaf: issueClient(noAuthority), roots: [noAuthority], want: /is not an authority/ },
    { name: "that may not sign", leaf: issueClient(noSigner), roots: [noSigner], want: /may not sign/ },
    { name: "of version 1 counts as a root", leaf: issueClient(version1), roots: [version1], want: 2 },
  ]);
});

describe("intermediate certificates", () => {
  const first = issueAuthority("first", { issuer: root });
  const second = issueAuthority("second", { issuer: first });
  const leaf = issueClient(second);
  const fake = issue({ subject: cn("fake"), issuer: root, extensions: [ext.purposes(oid.clientAuth)] });
  const expired = issueAuthority("first", { issuer: root, notAfterMs: startMs - 1, key: first.key });
  check([
    { name: "lead to the root", leaf, sent: [second, first], want: 4 },
    { name: "may come in any order, and more than once", leaf, sent: [first, first, second, second], want: 4 },
    { name: "have to be all there", leaf, sent: [second], want: unknownAuthority },
    { name: "are not trusted by themselves", leaf, sent: [second, first], roots: [sameName], want: unknownAuthority },
    {
      name: "must be authorities: a client's key issues nothing",
      leaf: issueClient(fake),
      sent: [fake],
      want: /intermediate certificate that is not an authority/,
    },
    { name: "must not have expired", leaf, sent: [second, expired], want: /intermediate certificate that expired/ },
    { name: "may be there in a second, valid form", leaf, sent: [second, expired, first], want: 4 },
    { name: "may be in the bundle as roots", leaf, sent: [], roots: [second], want: 2 },
    {
      name: "of version 1 do not count",
      leaf: issueClient(issue({ subject: cn("v1"), issuer: root, version1: true })),
      want: unknownAuthority,
    },
  ]);

  test("beyond the limit are not looked at", () => {
    const others = Array.from({ length: intermediatesMax - 1 }, () => client);
    expect(verify({ leaf, sent: [...others, second, first] })).toHaveProperty("error");
  });

  test("that a stranger made up cost no check with a key of theirs", () => {
    const names = ["a", "b", "c", "d", "e", "f", "g", "h", "i"];
    const circle = names.map((n, i) => issueAuthority(n, { issuerName: cn(names[(i + 1) % names.length] ?? "") }));
    const pretenders = names.map((n) => issueAuthority(n, { issuerName: root.subject }));
    for (const { certificate } of [...circle, ...pretenders]) {
      Object.defineProperty(certificate.x509, "publicKey", { get: () => expect.fail("a stranger's key was used") });
    }
    for (const sent of [circle, pretenders]) {
      const leaf = issueClient(sent[0] ?? root);
      expect(verify({ leaf, sent })).toEqual({ error: expect.stringMatching(unknownAuthority) });
    }
  });

  const cross = issueAuthority("root2");
  const crossed = issueAuthority("first", { issuer: cross, key: first.key });
  check([
    { name: "may be cross-signed", leaf: issueClient(first), sent: [crossed, first], roots: [cross], want: 3 },
    { name: "that sign each other in a circle end", leaf, sent: [second, crossed], want: unknownAuthority },
  ]);
});

describe("path lengths", () => {
  const narrow = issueAuthority("narrow", { pathLength: 0 });
  const below = issueAuthority("below", { issuer: narrow });
  const one = issueAuthority("one", { pathLength: 1 });
  const belowOne = issueAuthority("below one", { issuer: one });
  const belowTwo = issueAuthority("below two", { issuer: belowOne });
  const tooMany = /more authorities above it than one of them allows/;
  check([
    { name: "0 allows leaves", leaf: issueClient(narrow), roots: [narrow], want: 2 },
    { name: "0 allows no authority below", leaf: issueClient(below), sent: [below], roots: [narrow], want: tooMany },
    { name: "1 allows one", leaf: issueClient(belowOne), sent: [belowOne], roots: [one], want: 3 },
    {
      name: "1 allows no second one",
      leaf: issueClient(belowTwo),
      sent: [belowTwo, belowOne],
      roots: [one],
      want: tooMany,
    },
  ]);
});

describe("name constraints", () => {
  const withConstraints = (permitted: Buffer[], excluded: Buffer[] = [], isCritical = true) =>
    issueAuthority("constrained", { extensions: [ext.nameConstraints({ permitted, excluded }, isCritical)] });
  const forbidden = /a name that one of its authorities may not issue for/;
  const dns = withConstraints([general.dns("example.com")], [general.dns("bad.example.com")]);
  const below = withConstraints([general.dns(".example.com")]);
  const ip = withConstraints([general.ip(10, 0, 0, 0, 255, 0, 0, 0)]);
  const email = withConstraints([general.email("example.com")]);
  const directory = withConstraints([general.directory(cn("x"))]);
  const optional = withConstraints([general.directory(cn("x"))], [], false);
  const leafOf = (issuer: Issued, extension: Buffer) => issueClient(issuer, { extensions: [extension] });
  const row = (name: string, issuer: Issued, extension: Buffer, want: Case["want"]): Case => ({
    name,
    leaf: leafOf(issuer, extension),
    roots: [issuer],
    want,
  });
  check([
    { name: "do not concern certificates without names", leaf: issueClient(dns), roots: [dns], want: 2 },
    row("permit a domain", dns, ext.dnsNames("example.com"), 2),
    row("permit what is below it", dns, ext.dnsNames("a.B.Example.com"), 2),
    row("permit nothing else", dns, ext.dnsNames("a.example.com", "example.org"), forbidden),
    row("permit no mere suffix", dns, ext.dnsNames("notexample.com"), forbidden),
    row("exclude what is below", dns, ext.dnsNames("x.bad.example.com"), forbidden),
    row("with a dot exclude the domain itself", below, ext.dnsNames("example.com"), forbidden),
    row("with a dot permit what is below", below, ext.dnsNames("a.example.com"), 2),
    row("permit addresses", ip, ext.ips([10, 1, 2, 3]), 2),
    row("permit no other address", ip, ext.ips([11, 1, 2, 3]), forbidden),
    row("permit no address of the other family", ip, ext.ips(new Array<number>(16).fill(10)), forbidden),
    row("of kinds that are not compared forbid that kind", email, ext.emails("a@example.com"), forbidden),
    row("leave other kinds alone", email, ext.dnsNames("a"), 2),
    {
      name: "of directory names cannot be honoured",
      leaf: issueClient(directory),
      roots: [directory],
      want: /authority that has the critical extension 2\.5\.29\.30/,
    },
    { name: "of directory names may be optional", leaf: issueClient(optional), roots: [optional], want: 2 },
  ]);

  test("hold for everything below, however deep", () => {
    const middle = issueAuthority("middle", { issuer: dns });
    const good = leafOf(middle, ext.dnsNames("a.example.com"));
    const bad = leafOf(middle, ext.dnsNames("a.example.org"));
    expect(verify({ leaf: good, sent: [middle], roots: [dns] })).toMatchObject({ chain: { length: 3 } });
    expect(verify({ leaf: bad, sent: [middle], roots: [dns] })).toEqual({ error: expect.stringMatching(forbidden) });
  });
});
