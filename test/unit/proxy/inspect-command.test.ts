import { readFile } from "node:fs/promises";
import { beforeAll, describe, expect, test } from "vitest";
import { parseCommandLine } from "../../../agent/config/load.ts";
import { rulesHelp } from "../../../agent/config/inspect-rules.ts";
import type { ExecResult } from "../../../agent/lib/exec.ts";
import { runRulesInspection } from "../../../agent/proxy/inspect/command.ts";
import type { Kernel } from "../../../agent/proxy/inspect/read.ts";
import { fakeHost } from "../config/support.ts";

const parse = (line: string) => parseCommandLine(line.split(" "), fakeHost());
const web = { kind: "rules", service: { namespace: "shop", name: "web" }, output: "text" };
const way = { kind: "trace", source: "10.0.0.1", destination: "10.96.0.10", port: 53, protocol: "tcp", output: "text" };

describe("the command line", () => {
  test.each([
    ["rules shop/web", web],
    ["rules svc shop/web", web],
    ["rules web -n shop", web],
    ["rules svc/web --namespace shop", web],
    ["rules web -o json", { ...web, service: { namespace: "default", name: "web" }, output: "json" }],
    ["rules 10.96.0.10", { ...web, service: { address: "10.96.0.10" } }],
    ["rules fd00:96::10", { ...web, service: { address: "fd00:96::10" } }],
    ["trace 10.0.0.1 10.96.0.10:53", way],
    ["trace 10.0.0.1 10.96.0.10:53 --proto UDP", { ...way, protocol: "udp" }],
    ["trace 10.0.0.1 10.96.0.10:53 --in-interface cni0 -o json", { ...way, inInterface: "cni0", output: "json" }],
    ["trace fd00::1 [fd00:96::10]:53", { ...way, source: "fd00::1", destination: "fd00:96::10" }],
  ])("%s", (line, want) => {
    expect(parse(line)).toEqual({
      ...("inInterface" in want || want.kind === "rules" ? {} : { inInterface: undefined }),
      ...want,
    });
  });

  test.each([
    ["rules", "say which service: nodelet rules NAMESPACE/SERVICE"],
    ["rules a b", "say which service"],
    ["rules a/b/c", "say which service"],
    ["rules shop/web -n test", "--namespace test and the service's shop/web do not agree"],
    ["rules web --proto udp", "--proto is for nodelet trace"],
    ["rules web -o yaml", "--output: must be text or json, not yaml"],
    ["rules web --all", "Unknown option '--all'; see nodelet rules --help"],
    ["trace", "say from where to where: nodelet trace SOURCE ADDRESS:PORT"],
    ["trace 10.0.0.1", "say from where to where"],
    ["trace web 10.96.0.10:53", "the source web is no IP address"],
    ["trace 10.0.0.1 10.96.0.10", "the destination 10.96.0.10 is no address with a port: write ADDRESS:PORT"],
    ["trace 10.0.0.1 kube-dns:53", "the destination kube-dns:53 is no address with a port"],
    ["trace fd00::1 fd00:96::10", "write [fd00:96::10]:PORT"],
    ["trace 10.0.0.1 10.96.0.10:0", "the port 0 is not in 1-65535"],
    ["trace 10.0.0.1 10.96.0.10:99999", "the port 99999 is not in 1-65535"],
    ["trace 10.0.0.1 [fd00:96::10]:53", "are of different IP families"],
    ["trace 10.0.0.1 10.96.0.10:53 --proto icmp", "--proto: must be tcp, udp or sctp, not icmp"],
    ["trace 10.0.0.1 10.96.0.10:53 -n shop", "--namespace is for nodelet rules"],
  ])("%s: an error that says what to do", (line, want) => {
    expect(() => parse(line)).toThrow(want);
  });

  test("--help", () => {
    const want = { kind: "help", text: rulesHelp };
    for (const line of ["rules --help", "trace -h a b c"]) expect(parse(line)).toEqual(want);
    expect(rulesHelp.split("\n").filter((text) => text.length > 120)).toEqual([]);
  });
});

/** Outputs by command line; what is not there is not installed. */
type Outputs = Record<string, string | { stderr: string }>;

function kernelOf(outputs: Outputs, files: Record<string, string> = {}): Kernel {
  const find = (file: string, args: readonly string[]): ExecResult & { stdout: string } => {
    const output = outputs[[file, ...args].join(" ")];
    const isKnown = Object.keys(outputs).some((line) => line.split(" ", 1)[0] === file);
    const stderr = typeof output === "object" ? output.stderr : "";
    const failure = isKnown ? (typeof output === "string" ? undefined : "exit") : "spawn";
    return {
      code: failure === undefined ? 0 : 1,
      signal: undefined,
      stdout: typeof output === "string" ? output : "",
      stderr,
      truncated: false,
      durationMs: 0,
      ...(failure === undefined ? {} : { failure }),
      message: `${file} exited with 1: ${stderr}`,
    };
  };
  return {
    commands: {
      run: async (file, args) => find(file, args),
      lines: async (file, args, { onLine }) => {
        const result = find(file, args);
        for (const line of result.stdout.split("\n")) onLine(line);
        return { ...result, stdout: "" };
      },
    },
    read: async (path) => {
      const text = files[path];
      if (text === undefined) throw Object.assign(new Error(`ENOENT: ${path}`), { code: "ENOENT" });
      return text;
    },
  };
}

const files = {
  "/proc/net/fib_trie": "     |-- 192.0.2.1\n        /32 host LOCAL\n     |-- 10.244.1.1\n        /32 host LOCAL\n",
  "/proc/net/route":
    "eth0\t00000000\t020200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\nveth1\t0001F40A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0",
  "/proc/sys/net/ipv4/ip_forward": "1\n",
  "/proc/net/xt_recent/KUBE-SEP-T7DSECR4GK3STBZI":
    "src=10.244.1.2 ttl: 64 last_seen: 4300000000 oldest_pkt: 1 4300000000\n",
};

async function say(line: string, kernel: Kernel, columns = 80) {
  const said = { code: -1, out: "", err: "" };
  const command = parse(line);
  if (command.kind !== "rules" && command.kind !== "trace") throw new Error(line);
  said.code = await runRulesInspection(
    command,
    {
      out: (text) => void (said.out += text),
      err: (text) => void (said.err += text),
      columns,
      isColoured: false,
    },
    kernel,
  );
  return said;
}

// Two to a cluster IP, one of them over; one to a node port by the node's address; others that only look alike.
const flows = `tcp      6 431999 ESTABLISHED src=10.244.1.9 dst=10.96.0.10 sport=4000 dport=80 src=10.244.2.2 dst=10.244.1.9 sport=8080 dport=4000 [ASSURED] mark=0 use=1
tcp      6 100 TIME_WAIT src=10.244.1.9 dst=10.96.0.10 sport=4001 dport=80 src=10.244.1.2 dst=10.244.1.9 sport=8080 dport=4001 [ASSURED] mark=0 use=1
tcp      6 431999 ESTABLISHED src=198.51.100.7 dst=192.0.2.1 sport=4002 dport=30080 src=10.244.1.2 dst=198.51.100.7 sport=8080 dport=4002 [ASSURED] mark=0 use=1
tcp      6 431999 ESTABLISHED src=10.244.1.9 dst=198.51.100.7 sport=4003 dport=30080 src=198.51.100.7 dst=10.244.1.9 sport=30080 dport=4003 [ASSURED] mark=0 use=1
udp      17 20 src=10.244.1.9 dst=10.96.0.10 sport=5000 dport=80 [UNREPLIED] src=10.244.1.2 dst=10.244.1.9 sport=8080 dport=5000 mark=0 use=1
icmp     1 29 src=10.244.1.9 dst=10.96.0.10 type=8 code=0 id=7 src=10.96.0.10 dst=10.244.1.9 type=0 code=0 id=7 mark=0 use=1
`;

describe.each(["iptables", "nftables"] as const)("%s", (mode) => {
  let kernel: Kernel;
  beforeAll(async () => {
    const file = async (name: string) => await readFile(new URL(`kernel/${name}`, import.meta.url), "utf8");
    const tables = (...names: string[]) =>
      JSON.stringify({ nftables: names.map((name) => ({ table: { family: "ip", name } })) });
    kernel = kernelOf(
      mode === "iptables"
        ? {
            "iptables-nft-save -c": await file("iptables-save.txt"),
            "ip6tables-nft-save -c": "",
            "ipset save": await file("ipset-save.txt"),
            "nft --json list tables": tables("mangle", "filter", "nat"),
          }
        : {
            "nft --json list tables": tables("kube-proxy"),
            "nft --json list table ip kube-proxy": await file("nft-list.json"),
            "conntrack -L -f ipv4": flows,
          },
      files,
    );
  });

  test.each([
    ["rules-clusterip", "rules ns1/web"],
    ["rules-nodeport-local", "rules np -n ns1"],
    ["rules-loadbalancer", "rules 203.0.113.1"],
    ["rules-no-endpoints", "rules ns1/none"],
    ["rules-affinity", "rules ns1/sticky"],
    ["trace-clusterip", "trace 10.244.1.2 10.96.0.10:80"],
    ["trace-no-endpoints", "trace 10.244.1.9 10.96.0.11:80"],
    ["trace-source-not-in-range", "trace 198.51.100.7 203.0.113.1:80"],
    ["trace-nodeport-from-node", "trace 192.0.2.1 192.0.2.1:30080"],
    ["trace-wrong-port", "trace 10.244.1.9 10.96.0.12:81"],
    ["trace-no-service", "trace 10.244.1.9 8.8.8.8:53 --proto udp"],
    ["trace-affinity", "trace 10.244.1.9 10.96.0.12:80"],
    ["trace-affinity-known", "trace 10.244.1.2 10.96.0.12:80"],
    ["trace-nodeport-on-loopback", "trace 127.0.0.1 127.0.0.1:30080"],
    ["trace-nodeport-elsewhere", "trace 10.244.1.9 10.244.1.1:30080"],
  ])("%s", async (name, line) => {
    const { code, out, err } = await say(line, kernel);
    expect({ code, err }).toEqual({ code: 0, err: "" });
    expect(out.split("\n").filter((text) => text.length > 80)).toEqual([]);
    await expect(out).toMatchFileSnapshot(`golden-inspect/${mode}-${name}.txt`);
  });

  test("for programs", async () => {
    const rules: unknown = JSON.parse((await say("rules ns1/web -o json", kernel)).out);
    expect(rules).toMatchObject([{ service: "ns1/web", ports: [{ name: "ns1/web:p80" }, { name: "ns1/web:u80" }] }]);
    const trace: unknown = JSON.parse((await say("trace 10.244.1.2 10.96.0.10:80 -o json", kernel)).out);
    expect(trace).toMatchObject({ service: "ns1/web:p80", ends: [{ share: 0.5 }, { share: 0.5 }], unjudged: [] });
  });

  test("live figures: packets where rules count them, otherwise flows", async () => {
    const [rules] = JSON.parse((await say("rules ns1/web -o json", kernel)).out) as [
      { ports: { entrances: object[]; chains: { endpoints: { flows?: number; counter?: object }[] }[] }[] },
    ];
    const endpoints = rules.ports.flatMap(({ chains }) => chains.flatMap((chain) => chain.endpoints));
    if (mode === "nftables") expect(endpoints.map((one) => one.flows)).toEqual([1, 1, 1, 0]);
    else expect(endpoints.every(({ counter, flows: none }) => counter !== undefined && none === undefined)).toBe(true);
  });

  test("a service that is not there", async () => {
    const { code, out, err } = await say("rules ns1/nix", kernel);
    expect({ code, out }).toEqual({ code: 1, out: "" });
    expect(err).toMatch(/^nodelet: no rule names service ns1\/nix .*-n NAMESPACE/);
    const json = await say("rules ns1/nix -o json", kernel);
    expect(json).toMatchObject({ code: 1, out: "[]\n", err: "" });
  });
});

describe("nftables mode says what its rules cannot", () => {
  let kernel: Kernel;
  beforeAll(async () => {
    const text = await readFile(new URL("kernel/nft-list.json", import.meta.url), "utf8");
    const json = JSON.parse(text) as { nftables: Record<string, Record<string, unknown>>[] };
    const away = [{ elem: { val: { concat: ["10.96.0.17", "tcp", 80] }, comment: "ns1/away:p80" } }, { drop: null }];
    for (const { map } of json.nftables) {
      if (map?.["name"] === "no-endpoint-services") (map["elem"] as unknown[]).push(away);
    }
    const daddr = { payload: { protocol: "ip", field: "daddr" } };
    const range = { prefix: { addr: "10.96.0.0", len: 16 } };
    const expr = [{ match: { op: "==", left: daddr, right: range } }, { drop: null }];
    json.nftables.push({ rule: { family: "ip", table: "kube-proxy", chain: "cluster-ips-check", expr } });
    kernel = kernelOf(
      {
        "nft --json list tables": JSON.stringify({ nftables: [{ table: { family: "ip", name: "kube-proxy" } }] }),
        "nft --json list table ip kube-proxy": JSON.stringify(json),
        "conntrack -L -f ipv4": "",
      },
      files,
    );
  });

  test("endpoints on other nodes only", async () => {
    const { out } = await say("rules ns1/away", kernel);
    expect(out).toContain("  10.96.0.17:80  has no local endpoints: DROP\n");
    expect((await say("trace 10.244.1.9 10.96.0.17:80", kernel, 120)).out).toContain(
      "ns1/away:p80 has no local endpoints",
    );
  });

  test("an address that no service has", async () => {
    const { out } = await say("trace 10.244.1.9 10.96.44.44:80", kernel);
    expect(out).toContain("It is dropped by ip kube-proxy cluster-ips-check: no service has this address\n");
  });
});

test("node ports of the iptables mode are shown at the addresses that answer them", async () => {
  const saved = await readFile(new URL("kernel/iptables-save.txt", import.meta.url), "utf8");
  const limited = saved.replace("--dst-type LOCAL -j KUBE-NODEPORTS", "-d 192.0.2.1/32 -j KUBE-NODEPORTS");
  expect(limited).not.toBe(saved);
  const ipsets = await readFile(new URL("kernel/ipset-save.txt", import.meta.url), "utf8");
  const outputs = { "iptables-nft-save -c": limited.replace(/-m addrtype -d/, "-d"), "ipset save": ipsets };
  const kernel = kernelOf({ ...outputs, "nft --json list tables": '{"nftables":[]}' }, files);
  expect((await say("rules ns1/np", kernel)).out).toContain("\n  192.0.2.1:30080  node port ");
  const { out } = await say("trace 10.244.1.9 10.244.1.1:30080", kernel, 120);
  expect(out).toContain("It is for this node itself: the port is a node port of ns1/np:p80");
  expect(out).toContain("node ports answer on 192.0.2.1 of this node (nodePortAddresses)");
});

describe("what cannot be read", () => {
  test("flows: the rules are shown all the same", async () => {
    const table = await readFile(new URL("kernel/nft-list.json", import.meta.url), "utf8");
    const kernel = kernelOf({
      "nft --json list tables": JSON.stringify({ nftables: [{ table: { family: "ip", name: "kube-proxy" } }] }),
      "nft --json list table ip kube-proxy": table,
    });
    const { code, out, err } = await say("rules ns1/web", kernel);
    expect({ code, err }).toEqual({
      code: 0,
      err: expect.stringMatching(/^nodelet: flows cannot be counted: conntrack/),
    });
    expect(out).toContain("10.244.1.2:8080\n");
    expect(out).not.toContain("flow");
  });

  test("nothing is installed", async () => {
    expect((await say("rules ns1/web", kernelOf({}))).err).toContain("there are no rules of a service proxy");
    const { code, err } = await say("trace 10.244.1.2 10.96.0.10:80", kernelOf({}, files));
    expect({ code, err }).toEqual({
      code: 1,
      err: "nodelet: the kernel's rules cannot be read: neither iptables nor nft can be run\n",
    });
  });

  test("without root's rights", async () => {
    const stderr = "Permission denied (you must be root)";
    const kernel = kernelOf({ "iptables-nft-save -c": { stderr } }, files);
    expect((await say("trace 10.244.1.2 10.96.0.10:80", kernel)).err).toContain(stderr);
    expect((await say("rules 10.96.0.10", kernel)).err).toContain(stderr);
  });

  test("a table of somebody else is told and left out", async () => {
    const tables = JSON.stringify({ nftables: [{ table: { family: "inet", name: "fw" } }] });
    const kernel = kernelOf(
      {
        "nft --json list tables": tables,
        "nft --json list table inet fw": { stderr: "core dumped" },
        "iptables-nft-save -c": "*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT",
      },
      files,
    );
    const { code, out } = await say("trace 10.244.1.2 8.8.8.8:53", kernel, 120);
    expect(code).toBe(0);
    expect(out).toContain("not read, so not followed: table inet fw");
    expect(out).toContain("there are no rules of a service proxy on this machine");
  });

  test("a source that no route leads to", async () => {
    const kernel = kernelOf({ "iptables-nft-save -c": "*filter\nCOMMIT" }, { ...files, "/proc/net/route": "" });
    expect((await say("trace 10.244.1.2 8.8.8.8:53", kernel)).err).toBe(
      "nodelet: there is no route to 10.244.1.2: say --in-interface\n",
    );
    expect((await say("trace 10.244.1.2 8.8.8.8:53 --in-interface veth1", kernel)).out).toContain(
      "There is no route to 8.8.8.8:53",
    );
  });

  test("a machine that does not forward", async () => {
    const off = { ...files, "/proc/sys/net/ipv4/ip_forward": "0\n" };
    const kernel = kernelOf({ "iptables-nft-save -c": "*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT" }, off);
    expect((await say("trace 10.244.1.2 8.8.8.8:53", kernel)).out).toContain("this machine forwards nothing");
  });
});
