import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import type { PodSpec } from "../../../agent/kube/types.ts";
import {
  checkResolvConf,
  type DNSConfig,
  type DNSContext,
  nameserversMax,
  parseResolvConf,
  podDNS,
  resolvConfBytesMax,
  searchDomainLengthMax,
  searchDomainsMax,
  searchLineLengthMax,
} from "../../../agent/pods/dns.ts";
import { readResolvConf } from "../../../agent/pods/resolv-conf.ts";
import { makePod, makeTempDir } from "../volumes/support.ts";

const host: DNSConfig = { servers: ["192.0.2.53"], searches: ["corp.example"], options: ["timeout:2"] };
const base: DNSContext = { clusterDNS: ["10.96.0.10"], clusterDomain: "cluster.local", host, nodeIPs: ["192.0.2.1"] };
const clusterSearches = ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local"];

describe("parseResolvConf", () => {
  test.each([
    ["nameservers accumulate", "nameserver 1.1.1.1\nnameserver 8.8.8.8 ignored\n", { servers: ["1.1.1.1", "8.8.8.8"] }],
    ["the last search line wins, dots trimmed", "search a b\nsearch c. .\n", { searches: ["c"] }],
    ["options merge by name", "options ndots:1 rotate\noptions ndots:3\n", { options: ["ndots:3", "rotate"] }],
    ["comments, domain and blanks are nothing", "# nameserver 9.9.9.9\ndomain x\n\n  \n", {}],
    ["no search domain is none", "search a\nsearch\n", { searches: [] }],
    ["an option with a value beats one without", "options ndots\noptions ndots:2", { options: ["ndots:2"] }],
    ["IPv6 servers, with their zone", "nameserver fe80::1%eth0\nnameserver ::1", { servers: ["fe80::1%eth0", "::1"] }],
    ["lines that end as on Windows", "nameserver 1.1.1.1\r\nsearch a\r\n", { servers: ["1.1.1.1"], searches: ["a"] }],
    ["indented and tabbed lines", "  nameserver\t1.1.1.1", { servers: ["1.1.1.1"] }],
  ])("%s", (_name, text, want) => {
    expect(parseResolvConf(text)).toEqual({ servers: [], searches: [], options: [], ...want });
  });

  test("a nameserver without an address is an error", () => {
    expect(() => parseResolvConf("nameserver\n")).toThrow("no address");
  });
});

describe("podDNS", () => {
  const none = { servers: [], searches: [], options: [] };
  const cluster = { servers: ["10.96.0.10"], searches: [...clusterSearches, "corp.example"], options: ["ndots:5"] };
  const cases: { name: string; spec: Partial<PodSpec>; context?: Partial<DNSContext>; want: DNSConfig }[] = [
    { name: "ClusterFirst is the default", spec: {}, want: cluster },
    { name: "ClusterFirst on the host's network: the host's", spec: { hostNetwork: true }, want: host },
    {
      name: "ClusterFirstWithHostNet: the cluster's",
      spec: { hostNetwork: true, dnsPolicy: "ClusterFirstWithHostNet" },
      want: cluster,
    },
    {
      name: "ClusterFirstWithHostNet, off the host's network",
      spec: { dnsPolicy: "ClusterFirstWithHostNet" },
      want: cluster,
    },
    { name: "an unknown policy counts as ClusterFirst", spec: { dnsPolicy: "Nonsense" as "Default" }, want: cluster },
    { name: "Default on the host's network", spec: { hostNetwork: true, dnsPolicy: "Default" }, want: host },
    { name: "None on the host's network", spec: { hostNetwork: true, dnsPolicy: "None" }, want: none },
    { name: "Default: the host's", spec: { dnsPolicy: "Default" }, want: host },
    { name: "None: nothing", spec: { dnsPolicy: "None" }, want: none },
    {
      name: "no cluster domain: the host's searches",
      spec: {},
      context: { clusterDomain: "" },
      want: { ...cluster, searches: ["corp.example"] },
    },
    {
      name: "host searches that the cluster has are not doubled",
      spec: {},
      context: { host: { ...host, searches: ["cluster.local", "corp.example"] } },
      want: cluster,
    },
    {
      name: "entries of clusterDNS that are no addresses are left out",
      spec: {},
      context: { clusterDNS: ["dns.example", "10.96.0.10"] },
      want: cluster,
    },
    {
      name: "Default without a host file: loopback by the node's families",
      spec: { dnsPolicy: "Default" },
      context: { host: undefined, nodeIPs: ["192.0.2.1", "2001:db8::1"] },
      want: { servers: ["127.0.0.1", "::1"], searches: ["."], options: [] },
    },
    {
      name: "Default without a host file on a node without addresses",
      spec: { dnsPolicy: "Default" },
      context: { host: undefined, nodeIPs: [] },
      want: { servers: ["127.0.0.1"], searches: ["."], options: [] },
    },
    {
      name: "Default without a host file on an IPv6 node",
      spec: { dnsPolicy: "Default" },
      context: { host: undefined, nodeIPs: ["2001:db8::1"] },
      want: { servers: ["::1"], searches: ["."], options: [] },
    },
    {
      name: "ClusterFirst without a host file",
      spec: {},
      context: { host: undefined },
      want: { ...cluster, searches: clusterSearches },
    },
    {
      name: "dnsConfig alone, with None",
      spec: {
        dnsPolicy: "None",
        dnsConfig: { nameservers: ["1.1.1.1"], searches: ["a"], options: [{ name: "debug" }] },
      },
      want: { servers: ["1.1.1.1"], searches: ["a"], options: ["debug"] },
    },
    {
      name: "an option without a value replaces one with",
      spec: { dnsConfig: { options: [{ name: "ndots" }, { name: "timeout", value: "" }] } },
      want: { ...cluster, options: ["ndots", "timeout"] },
    },
    {
      name: "dnsConfig adds, and overrides options by name",
      spec: {
        dnsConfig: {
          nameservers: ["1.1.1.1", "10.96.0.10"],
          searches: ["more.example"],
          options: [{ name: "ndots", value: "2" }, { name: "rotate" }],
        },
      },
      want: {
        servers: ["10.96.0.10", "1.1.1.1"],
        searches: [...cluster.searches, "more.example"],
        options: ["ndots:2", "rotate"],
      },
    },
  ];
  for (const { name, spec, context, want } of cases) {
    test(name, () => expect(podDNS(makePod(spec), { ...base, ...context })).toEqual({ config: want, warnings: [] }));
  }

  test("no clusterDNS: the host's, and a warning on pod and node", () => {
    const { config, warnings } = podDNS(makePod({}), { ...base, clusterDNS: [] });
    expect(config).toEqual(host);
    expect(warnings).toEqual([
      { reason: "MissingClusterDNS", message: expect.stringContaining('"ClusterFirst"') as string, alsoNode: true },
    ]);
  });

  test("more than three nameservers are cut, and the pod is told which are left", () => {
    const nameservers = ["1.1.1.1", "1.1.1.2", "1.1.1.3", "1.1.1.4"];
    const { config, warnings } = podDNS(makePod({ dnsPolicy: "None", dnsConfig: { nameservers } }), base);
    expect(config.servers).toHaveLength(nameserversMax);
    expect(warnings).toEqual([
      {
        reason: "DNSConfigForming",
        message:
          "Nameserver limits were exceeded, some nameservers have been omitted, " +
          "the applied nameserver line is: 1.1.1.1 1.1.1.2 1.1.1.3",
        alsoNode: false,
      },
    ]);
  });

  test.each([
    { name: "too many", searches: Array.from({ length: 40 }, (_, i) => `s${i}`), kept: searchDomainsMax },
    { name: "one too long", searches: ["a", "b".repeat(searchDomainLengthMax + 1), "c"], kept: 2 },
    {
      name: "line too long",
      searches: Array.from({ length: 10 }, (_, i) => `${i}${"x".repeat(249)}`),
      kept: Math.floor((searchLineLengthMax + 1) / 251),
    },
  ])("search domains, $name: cut with one warning", ({ searches, kept }) => {
    const { config, warnings } = podDNS(makePod({ dnsPolicy: "None", dnsConfig: { searches } }), base);
    expect(config.searches).toHaveLength(kept);
    expect(warnings.map(({ message }) => message)).toEqual([
      expect.stringContaining("Search Line limits were exceeded"),
    ]);
  });
});

describe("readResolvConf", () => {
  const withFile = async (text: string, check: (path: string) => Promise<void>) => {
    const { dir, cleanUp } = await makeTempDir();
    try {
      await writeFile(join(dir, "resolv.conf"), text);
      await check(join(dir, "resolv.conf"));
    } finally {
      await cleanUp();
    }
  };

  test("reads the file; an empty path means none", async () => {
    expect(await readResolvConf("")).toBeUndefined();
    await withFile("nameserver 192.0.2.53\n", async (path) => {
      expect((await readResolvConf(path))?.servers).toEqual(["192.0.2.53"]);
    });
  });

  test("a file that is missing or wrong is named", async () => {
    await expect(readResolvConf("/nonexistent/resolv.conf")).rejects.toThrow(
      "cannot read DNS settings from /nonexistent/resolv.conf: ENOENT",
    );
    await withFile("nameserver\n", async (path) => {
      await expect(readResolvConf(path)).rejects.toMatchObject({ code: "Invalid" });
    });
  });

  test("what is past the limit is not read", async () => {
    const filler = `${"#".repeat(1023)}\n`.repeat(resolvConfBytesMax / 1024);
    await withFile(`nameserver 192.0.2.53\n${filler}nameserver 192.0.2.54\n`, async (path) => {
      expect((await readResolvConf(path))?.servers).toEqual(["192.0.2.53"]);
    });
  });
});

describe("checkResolvConf", () => {
  const names = (count: number) => Array.from({ length: count }, (_, i) => `s${i}`);
  test.each([
    { name: "fine", searches: names(29), domain: "cluster.local", want: undefined },
    { name: "no room for the cluster's own", searches: names(30), domain: "cluster.local", want: "pods can use 29" },
    { name: "room without a cluster domain", searches: names(32), domain: "", want: undefined },
    { name: "long entry", searches: ["x".repeat(254)], domain: "", want: "254 characters" },
    { name: "long line", searches: names(9).map((n) => n + "x".repeat(240)), domain: "", want: "search line" },
  ])("$name", ({ searches, domain, want }) => {
    const said = checkResolvConf({ servers: [], searches, options: [] }, domain);
    if (want === undefined) expect(said).toBeUndefined();
    else expect(said).toContain(want);
  });
});
