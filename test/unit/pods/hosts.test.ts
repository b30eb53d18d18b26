import { describe, expect, test } from "vitest";
import type { PodSpec } from "../../../agent/kube/types.ts";
import {
  kernelHostnameLengthMax,
  needsHostsFile,
  podHostname,
  renderHostNetworkHosts,
  renderHosts,
  sandboxHostname,
} from "../../../agent/pods/hosts.ts";
import { makePod } from "../volumes/support.ts";

const domain = "cluster.local";
const loopback = `# Kubernetes-managed hosts file.
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::0\tip6-localnet
fe00::0\tip6-mcastprefix
fe00::1\tip6-allnodes
fe00::2\tip6-allrouters
`;

describe("podHostname", () => {
  const long = `${"a".repeat(62)}-bcd`;
  test.each([
    { name: "the pod's name", spec: {}, want: { hostname: "web", domain: undefined } },
    { name: "spec.hostname", spec: { hostname: "db-0" }, want: { hostname: "db-0", domain: undefined } },
    {
      name: "with subdomain",
      spec: { hostname: "db-0", subdomain: "db" },
      want: { hostname: "db-0", domain: "db.shop.svc.cluster.local" },
    },
    {
      name: "override, no domain",
      spec: { hostnameOverride: "a.b.example", subdomain: "db" },
      want: { hostname: "a.b.example", domain: undefined },
    },
  ] as { name: string; spec: Partial<PodSpec>; want: unknown }[])("$name", ({ spec, want }) => {
    expect(podHostname(makePod(spec), domain)).toEqual(want);
  });

  test("a long name is cut, and what cannot end a name is trimmed", () => {
    expect(podHostname(makePod({}, { name: long }), domain).hostname).toBe("a".repeat(62));
    expect(podHostname(makePod({}, { name: "a".repeat(80) }), domain).hostname).toHaveLength(63);
  });

  test("a name of which nothing is left is refused", () => {
    expect(() => podHostname(makePod({}, { name: "-".repeat(64) }), domain)).toThrow("has nothing left");
  });

  test.each([
    [{ hostname: "Not_Valid" }, 'spec.hostname "Not_Valid" is not a DNS label'],
    [{ subdomain: "a.b" }, 'spec.subdomain "a.b" is not a DNS label'],
    [{ hostnameOverride: "-x" }, "is not a DNS subdomain"],
  ])("refuses %o", (spec, why) => expect(() => podHostname(makePod(spec), domain)).toThrow(why));
});

describe("sandboxHostname", () => {
  const fqdn = { subdomain: "db", setHostnameAsFQDN: true };
  test.each([
    { name: "short name", spec: { subdomain: "db" }, want: "web" },
    { name: "full name on request", spec: fqdn, want: "web.db.shop.svc.cluster.local" },
    { name: "no domain: short name", spec: { setHostnameAsFQDN: true }, want: "web" },
    { name: "host network: the host's own", spec: { hostNetwork: true }, want: "" },
  ])("$name", ({ spec, want }) => expect(sandboxHostname(makePod(spec), domain)).toBe(want));

  test("on the host's network a name that cannot be concerns the containers only", () => {
    const pod = makePod({ hostNetwork: true, hostname: "Not_Valid" });
    expect(sandboxHostname(pod, domain)).toBe("");
    expect(() => podHostname(pod, domain)).toThrow("is not a DNS label");
  });

  test("a name of just as many characters as the kernel takes is taken", () => {
    const name = "x".repeat(kernelHostnameLengthMax - ".db.shop.svc.cluster.local".length);
    expect(sandboxHostname(makePod(fqdn, { name }), domain)).toHaveLength(kernelHostnameLengthMax);
  });

  test("an override is the whole name, whatever else is asked for", () => {
    expect(sandboxHostname(makePod({ ...fqdn, hostnameOverride: "a.b.example" }), domain)).toBe("a.b.example");
  });

  test("a name the kernel cannot take is refused with a hint", () => {
    const pod = makePod(fqdn, { name: "x".repeat(kernelHostnameLengthMax - ".db.shop.svc.cluster.local".length + 1) });
    expect(() => sandboxHostname(pod, domain)).toThrow(
      /^failed to construct FQDN from pod hostname and cluster domain, FQDN x+\.db\.shop\.svc\.cluster\.local is too long \(64 characters is the max, 65 characters requested\)$/,
    );
  });
});

describe("hosts file", () => {
  test("one line per address, with the full name first", () => {
    const pod = makePod({});
    const name = { hostname: "web", domain: "db.shop.svc.cluster.local" };
    expect(renderHosts(pod, ["10.0.0.5", "fd00::5"], name)).toBe(
      `${loopback}10.0.0.5\tweb.db.shop.svc.cluster.local\tweb\nfd00::5\tweb.db.shop.svc.cluster.local\tweb\n`,
    );
    expect(renderHosts(pod, ["10.0.0.5"], { hostname: "web", domain: undefined })).toBe(`${loopback}10.0.0.5\tweb\n`);
  });

  const hostAliases = [{ ip: "192.0.2.9", hostnames: ["a.example", "b.example"] }, { ip: "192.0.2.10" }];
  const aliases = "\n# Entries added by HostAliases.\n192.0.2.9\ta.example\tb.example\n192.0.2.10\n";

  test("aliases follow, on both kinds of network", () => {
    const pod = makePod({ hostAliases });
    expect(renderHosts(pod, ["10.0.0.5"], { hostname: "web", domain: undefined })).toBe(
      `${loopback}10.0.0.5\tweb\n${aliases}`,
    );
    expect(renderHostNetworkHosts(pod, "127.0.0.1 localhost n1\n")).toBe(
      `# Kubernetes-managed hosts file (host network).\n127.0.0.1 localhost n1\n${aliases}`,
    );
  });

  test.each([
    { name: "with an address", spec: {}, ips: ["10.0.0.5"], mounts: [], want: true },
    { name: "without", spec: {}, ips: [], mounts: [], want: false },
    { name: "host network", spec: { hostNetwork: true }, ips: [], mounts: [], want: true },
    { name: "own file mounted", spec: {}, ips: ["10.0.0.5"], mounts: [{ mountPath: "/etc/hosts" }], want: false },
    { name: "something else mounted", spec: {}, ips: ["10.0.0.5"], mounts: [{ mountPath: "/etc" }], want: true },
  ])("$name: $want", ({ spec, ips, mounts, want }) => {
    expect(needsHostsFile(makePod(spec), { volumeMounts: mounts }, ips)).toBe(want);
  });
});
