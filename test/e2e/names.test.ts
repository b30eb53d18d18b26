import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { configMaps } from "../../agent/kube/resources.ts";
import type { Pod, PodSpec } from "../../agent/kube/types.ts";
import { openNamespace, type TestNamespace, until } from "./support/cluster.ts";
import { jobOf, podOf, shell } from "./support/pods.ts";

// What a pod is called and whom it knows by name: hostname, /etc/hosts, /etc/resolv.conf.

let cluster: TestNamespace;
let clusterDomain: string;

beforeAll(async () => {
  cluster = await openNamespace(inject("kubeconfig"));
  const { output } = await cluster.run(
    jobOf("domain", "sed -n 's/^search [^ ]*\\.svc\\.\\([^ ]*\\).*/\\1/p' /etc/resolv.conf"),
  );
  clusterDomain = output.trim();
});
afterAll(() => cluster[Symbol.asyncDispose]());

async function linesOf(pod: Pod): Promise<string[]> {
  const { output, exitCode } = await cluster.run(pod);
  expect({ output, exitCode }).toMatchObject({ exitCode: 0 });
  return output.trimEnd().split("\n");
}

describe.concurrent("names", () => {
  test("of a pod with subdomain: the short one for the kernel, both in /etc/hosts", async () => {
    const spec = { hostname: "db-0", subdomain: "db" };
    const [kernel, hosts] = await linesOf(jobOf("named", "hostname; tail -n 1 /etc/hosts", spec));
    const { status } = await cluster.getPod("named");
    expect(kernel).toBe("db-0");
    expect(hosts).toBe(`${status?.podIP}\tdb-0.db.${cluster.namespace}.svc.${clusterDomain}\tdb-0`);
  });

  test("in full for the kernel, on request", async () => {
    const spec = { hostname: "a", subdomain: "b", setHostnameAsFQDN: true };
    expect(await linesOf(jobOf("fqdn", "hostname", spec))).toEqual([`a.b.${cluster.namespace}.svc.${clusterDomain}`]);
  });

  test("that the kernel cannot take keep the pod from starting, and an event says so", async () => {
    const name = `long-${"x".repeat(50)}`;
    await cluster.createPod(podOf(name, "true", { subdomain: "b", setHostnameAsFQDN: true }));
    const full = `${name}.b.${cluster.namespace}.svc.${clusterDomain}`;
    const event = await until("an event", async () =>
      (await cluster.eventsOf(name)).find(({ reason }) => reason === "FailedCreatePodSandBox"),
    );
    expect(event.message).toContain(
      `failed to construct FQDN from pod hostname and cluster domain, FQDN ${full} is too long (64 characters is the max, ${full.length} characters requested)`,
    );
    expect((await cluster.getPod(name)).status?.phase).toBe("Pending");
  });

  test("that are longer than a label are cut", async () => {
    const name = `${"y".repeat(62)}-${"z".repeat(20)}`;
    expect(await linesOf(jobOf(name, "hostname"))).toEqual(["y".repeat(62)]);
  });

  test("may be overridden as a whole", async () => {
    const spec = { hostnameOverride: "legacy.example.com" };
    const [kernel, hosts] = await linesOf(jobOf("override", "hostname; tail -n 1 /etc/hosts", spec));
    expect(kernel).toBe("legacy.example.com");
    expect(hosts).toMatch(/^\S+\tlegacy\.example\.com$/);
  });
});

describe.concurrent("/etc/hosts", () => {
  test("is the node's on the host's network, with the pod's aliases", async () => {
    const hostAliases = [{ ip: "192.0.2.9", hostnames: ["a.example", "b.example"] }];
    const lines = await linesOf(jobOf("host-hosts", "cat /etc/hosts", { hostNetwork: true, hostAliases }));
    expect(lines[0]).toBe("# Kubernetes-managed hosts file (host network).");
    expect(lines.slice(-3)).toEqual(["", "# Entries added by HostAliases.", "192.0.2.9\ta.example\tb.example"]);
  });

  test("is written anew when a container of the pod starts, and the others see that", async () => {
    const volumeMounts = [{ name: "shared", mountPath: "/shared" }];
    const edits =
      "echo 192.0.2.7 mine >> /etc/hosts; touch /shared/edited; while grep -q mine /etc/hosts; do sleep 0.1; done; head -n 1 /etc/hosts > /dev/termination-log";
    const restarts =
      "test -e /shared/again && exit 0; until test -e /shared/edited; do sleep 0.1; done; touch /shared/again; exit 1";
    const pod = podOf(
      "rewritten",
      [shell("editor", edits, { volumeMounts }), shell("other", restarts, { volumeMounts })],
      {
        restartPolicy: "OnFailure",
        volumes: [{ name: "shared", emptyDir: {} }],
      },
    );
    expect((await cluster.run(pod)).output).toBe("# Kubernetes-managed hosts file.\n");
  });

  test("is the container's own where it mounts one", async () => {
    await cluster.create(configMaps, { metadata: { name: "hosts" }, data: { hosts: "127.0.0.1 mine\n" } });
    const volumes = [{ name: "own", configMap: { name: "hosts" } }];
    const volumeMounts = [{ name: "own", mountPath: "/etc/hosts", subPath: "hosts" }];
    expect(await linesOf(jobOf("own-hosts", "cat /etc/hosts", { volumes }, { volumeMounts }))).toEqual([
      "127.0.0.1 mine",
    ]);
  });
});

describe.concurrent("/etc/resolv.conf", () => {
  /** Words by keyword; options and searches in one line each. */
  const resolvConfOf = async (name: string, spec: Partial<PodSpec>) => {
    const lines = await linesOf(jobOf(name, "cat /etc/resolv.conf", spec));
    const of = (keyword: string) =>
      lines.filter((line) => line.startsWith(`${keyword} `)).flatMap((line) => line.split(/\s+/).slice(1));
    return { nameservers: of("nameserver"), searches: of("search"), options: of("options") };
  };

  test("leads to the cluster's names by default, also on the host's network if asked for", async () => {
    const { nameservers, searches, options } = await resolvConfOf("dns-cluster", {});
    expect(nameservers.length).toBeGreaterThan(0);
    expect(searches.slice(0, 3)).toEqual([
      `${cluster.namespace}.svc.${clusterDomain}`,
      `svc.${clusterDomain}`,
      clusterDomain,
    ]);
    expect(options).toEqual(["ndots:5"]);
    const spec = { hostNetwork: true, dnsPolicy: "ClusterFirstWithHostNet" as const };
    expect(await resolvConfOf("dns-cluster-host", spec)).toEqual({ nameservers, searches, options });
  });

  test("is the node's with policy Default, and by default on the host's network", async () => {
    const node = await resolvConfOf("dns-default", { dnsPolicy: "Default" });
    expect(node.searches.some((domain) => domain.endsWith(clusterDomain))).toBe(false);
    expect(await resolvConfOf("dns-host", { hostNetwork: true })).toEqual(node);
  });

  test("is all the pod's own with policy None", async () => {
    const dnsConfig = {
      nameservers: ["192.0.2.53", "2001:db8::53"],
      searches: ["one.example", "two.example"],
      options: [{ name: "ndots", value: "2" }, { name: "edns0" }],
    };
    expect(await resolvConfOf("dns-none", { dnsPolicy: "None", dnsConfig })).toEqual({
      nameservers: ["192.0.2.53", "2001:db8::53"],
      searches: ["one.example", "two.example"],
      options: ["ndots:2", "edns0"],
    });
  });

  test("is the cluster's with what the pod adds, cut to what a resolver reads, and an event says so", async () => {
    const added = ["192.0.2.51", "192.0.2.52", "192.0.2.53", "192.0.2.54"];
    const dnsConfig = { nameservers: added, searches: ["more.example"], options: [{ name: "ndots", value: "1" }] };
    const { nameservers, searches, options } = await resolvConfOf("dns-limits", { dnsConfig });
    expect(nameservers).toHaveLength(3);
    expect(searches.at(-1)).toBe("more.example");
    expect(options).toEqual(["ndots:1"]);
    const warnings = await until("the event", async () => {
      const found = (await cluster.eventsOf("dns-limits")).filter(({ reason }) => reason === "DNSConfigForming");
      return found.length > 0 ? found : undefined;
    });
    expect(warnings.map(({ message }) => message)).toEqual([
      "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: " +
        nameservers.join(" "),
    ]);
  });
});
