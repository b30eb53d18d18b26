import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { endpointSlices, services } from "../../agent/kube/resources.ts";
import type { EndpointSlice, Service } from "../../agent/kube/types.ts";
import { isReady, openNamespace, type TestNamespace } from "./support/cluster.ts";
import { startDNSEcho } from "./support/dns-echo.ts";
import { jobOf, serviceOf, webOf } from "./support/pods.ts";

let cluster: TestNamespace;

beforeAll(async () => {
  cluster = await openNamespace(inject("kubeconfig"));
  for (const name of ["web-a", "web-b"]) await cluster.createPod(webOf(name, { app: "web" }));
  await Promise.all(["web-a", "web-b"].map((name) => cluster.waitForPod(name, "ready", isReady)));
});
afterAll(() => cluster[Symbol.asyncDispose]());

const createService = (name: string, spec: NonNullable<Service["spec"]>) =>
  cluster.create(services, serviceOf(name, spec));

/** Shell: asks `url` until two names were heard; fails after 20 s. */
const askForBoth = (url: string) => `
  end=$(($(date +%s) + 20))
  while [ $(date +%s) -lt $end ]; do
    timeout 2 wget -q -O - ${url} >> /tmp/heard || sleep 0.3
    test $(sort -u /tmp/heard | wc -l) -ge 2 && break
  done
  sort -u /tmp/heard | tr '\\n' ' '`;

/** Shell: asks `url` until it answers, and prints that; fails after 20 s. */
const askOnce = (url: string) =>
  `end=$(($(date +%s) + 20)); until timeout 2 wget -q -O - ${url}; do test $(date +%s) -lt $end || exit 1; sleep 0.3; done`;

describe.concurrent("a Service", () => {
  test("with a cluster IP spreads over its pods, for pods and for the node", async () => {
    const service = await createService("web", { selector: { app: "web" }, ports: [{ port: 80, targetPort: 8080 }] });
    const script = askForBoth(`http://${service.spec?.clusterIP}/`);
    const [fromPod, fromNode] = await Promise.all([
      cluster.run(jobOf("ask-pod", script)),
      cluster.run(jobOf("ask-node", script, { hostNetwork: true })),
    ]);
    expect(fromPod).toEqual({ output: "web-a web-b ", exitCode: 0 });
    expect(fromNode).toEqual({ output: "web-a web-b ", exitCode: 0 });
  });

  test("with a node port answers on the node's address, for pods and for the node", async () => {
    const service = await createService("outside", {
      type: "NodePort",
      selector: { app: "web" },
      ports: [{ port: 80, targetPort: 8080 }],
    });
    const { status } = await cluster.getPod("web-a");
    const script = askForBoth(`http://${status?.hostIP}:${service.spec?.ports?.[0]?.nodePort}/`);
    const [fromPod, fromNode] = await Promise.all([
      cluster.run(jobOf("node-port-pod", script)),
      cluster.run(jobOf("node-port-node", script, { hostNetwork: true })),
    ]);
    expect(fromPod.output).toBe("web-a web-b ");
    expect(fromNode.output).toBe("web-a web-b ");
  });

  test("finds ports of pods by name", async () => {
    const service = await createService("named", {
      selector: { app: "web" },
      ports: [
        { name: "plain", port: 80, targetPort: "http" },
        { name: "other", port: 8888, targetPort: 8080 },
      ],
    });
    const { clusterIP } = service.spec ?? {};
    const { output } = await cluster.run(
      jobOf("ask-named", `${askOnce(`http://${clusterIP}/`)} && ${askOnce(`http://${clusterIP}:8888/`)}`),
    );
    expect(output).toMatch(/^web-[ab]\nweb-[ab]\n$/);
  });

  test("with session affinity sends one client to one pod", async () => {
    const service = await createService("sticky", {
      selector: { app: "web" },
      sessionAffinity: "ClientIP",
      ports: [{ port: 80, targetPort: 8080 }],
    });
    const url = `http://${service.spec?.clusterIP}/`;
    const script = `${askOnce(url)} > /tmp/first && for i in $(seq 20); do timeout 2 wget -q -O - ${url}; done | sort -u | cmp - /tmp/first && echo same`;
    expect((await cluster.run(jobOf("ask-sticky", script))).output).toBe("same\n");
  });

  test("without endpoints refuses at once", async () => {
    const service = await createService("nobody", { selector: { app: "nobody" }, ports: [{ port: 80 }] });
    const url = `http://${service.spec?.clusterIP}/`;
    // Unknown addresses time out (exit 1 after 5 s); a refusal is quick.
    const script = `end=$(($(date +%s) + 20)); until timeout 5 wget -O - ${url} 2>&1 | grep refused; do test $(date +%s) -lt $end || exit 1; sleep 0.3; done`;
    const { output, exitCode } = await cluster.run(jobOf("ask-nobody", script));
    expect(exitCode).toBe(0);
    expect(output).toContain("Connection refused");
  });

  test("reaches the pod that asks", async () => {
    const service = await createService("self", { selector: { app: "self" }, ports: [{ port: 80, targetPort: 8080 }] });
    const serve = "mkdir /tmp/www; hostname > /tmp/www/index.html; httpd -p 8080 -h /tmp/www";
    const job = jobOf("self", `${serve}; ${askOnce(`http://${service.spec?.clusterIP}/`)}`);
    const pod = { ...job, metadata: { ...job.metadata, labels: { app: "self" } } };
    expect(await cluster.run(pod)).toEqual({ output: "self\n", exitCode: 0 });
  });

  test("stops sending to a pod that is deleted", async () => {
    for (const name of ["pair-a", "pair-b"]) await cluster.createPod(webOf(name, { app: "pair" }));
    await Promise.all(["pair-a", "pair-b"].map((name) => cluster.waitForPod(name, "ready", isReady)));
    const service = await createService("pair", { selector: { app: "pair" }, ports: [{ port: 80, targetPort: 8080 }] });
    const url = `http://${service.spec?.clusterIP}/`;
    const onlyOne = `
      end=$(($(date +%s) + 30)); same=0
      while [ $same -lt 25 ] && [ $(date +%s) -lt $end ]; do
        if timeout 2 wget -q -O - ${url} | grep -q pair-b; then same=$((same + 1)); else same=0; fi
      done
      echo $same`;
    expect((await cluster.run(jobOf("ask-both", askForBoth(url)))).output).toBe("pair-a pair-b ");
    const asking = cluster.run(jobOf("ask-one", onlyOne));
    await cluster.waitForPod("ask-one", "running", ({ status }) => status?.phase !== "Pending");
    await cluster.deletePod("pair-a");
    expect((await asking).output).toBe("25\n");
  });

  test("changed twice at once ends in the state that the API server shows", async () => {
    const service = await createService("raced", { selector: { app: "web" }, ports: [{ port: 80, targetPort: 8080 }] });
    const key = { namespace: cluster.namespace, name: "raced" };
    const move = (port: number) =>
      cluster.client.patch(services, key, { spec: { ports: [{ port, targetPort: 8080 }] } }, { type: "merge" });
    await Promise.all([81, 82, 83, 84].map(move));
    const { spec } = await cluster.client.get(services, key);
    const port = spec?.ports?.[0]?.port ?? 0;
    const others = [80, 81, 82, 83, 84].filter((other) => other !== port);
    const ip = service.spec?.clusterIP;
    const deaf = others.map(
      (other) => `timeout 1 wget -q -O - http://${ip}:${other}/ > /dev/null && echo "${other} answers"`,
    );
    const { output } = await cluster.run(
      jobOf("ask-raced", `${askOnce(`http://${ip}:${port}/`)}; ${deaf.join("; ")}; true`),
    );
    expect(output).toMatch(/^web-[ab]\n$/);
  });

  test("behind a load balancer tells it whether the node has endpoints", async () => {
    const loadBalancer: NonNullable<Service["spec"]> = {
      type: "LoadBalancer",
      externalTrafficPolicy: "Local",
      ports: [{ port: 80 }],
    };
    const { spec: full } = await createService("checked", { ...loadBalancer, selector: { app: "web" } });
    const { spec: empty } = await createService("checked-empty", { ...loadBalancer, selector: { app: "nobody" } });
    const { status } = await cluster.getPod("web-a");
    const port = (spec: Service["spec"]) => `http://${status?.hostIP}:${spec?.healthCheckNodePort}/any`;
    const answer = `timeout 5 wget -S -O - ${port(full)} 2>&1`;
    const refusal = `timeout 5 wget -S -O - ${port(empty)} 2>&1`;
    const until = (command: string, what: string) =>
      `end=$(($(date +%s) + 20)); until ${command} | grep -q '${what}'; do test $(date +%s) -lt $end || exit 1; sleep 0.3; done`;
    const script = `${until(answer, "200 OK")}; ${until(refusal, "503")}; ${answer}`;
    const { output, exitCode } = await cluster.run(jobOf("ask-health", script));
    expect(exitCode).toBe(0);
    expect(output).toMatch(/X-Load-Balancing-Endpoint-Weight: [12]\r?\n/i);
    expect(output).toContain(`"namespace": "${cluster.namespace}"`);
    expect(output).toContain('"serviceProxyHealthy": true');
  });

  test.skipIf(!inject("isLocal"))("of UDP, with endpoints that are no pods", async () => {
    await using echo = await startDNSEcho(inject("hostIP"), "192.0.2.53");
    const service = await createService("names", {
      ports: [{ name: "dns", protocol: "UDP", port: 53, targetPort: echo.port }],
    });
    const slice: EndpointSlice = {
      metadata: { name: "names-1", labels: { "kubernetes.io/service-name": "names" } },
      addressType: "IPv4",
      endpoints: [{ addresses: [inject("hostIP")], conditions: { ready: true } }],
      ports: [{ name: "dns", protocol: "UDP", port: echo.port }],
    };
    await cluster.create(endpointSlices, slice);
    const script = `for i in $(seq 20); do nslookup some.name ${service.spec?.clusterIP} | grep 192.0.2.53 && exit 0; sleep 0.5; done; exit 1`;
    const [fromPod, fromNode] = await Promise.all([
      cluster.run(jobOf("udp-pod", script)),
      cluster.run(jobOf("udp-node", script, { hostNetwork: true })),
    ]);
    expect(fromPod).toMatchObject({ exitCode: 0, output: expect.stringContaining("192.0.2.53") as string });
    expect(fromNode).toMatchObject({ exitCode: 0 });
  });
});

test("the proxy shows its health and its metrics on the node, and none of the kubelet's", async () => {
  const fetched = (url: string) => `timeout 5 wget -q -O - ${url}`;
  const metrics = "http://127.0.0.1:10249";
  const script = [
    fetched("http://127.0.0.1:10256/healthz"),
    fetched(`${metrics}/proxyMode`),
    `${fetched(`${metrics}/metrics`)} > /tmp/metrics`,
    "grep -c '^kubeproxy_sync_proxy_rules_duration_seconds_count' /tmp/metrics",
    "grep -c '^rest_client_requests_total' /tmp/metrics",
    "grep '^kubelet_' /tmp/metrics | head -n 1",
  ].join("; echo; ");
  const { output } = await cluster.run(jobOf("ask-proxy", script, { hostNetwork: true }));
  const [healthz = "", mode, syncs, calls, ...others] = output.split("\n").filter((line) => line !== "");
  expect(JSON.parse(healthz)).toMatchObject({ nodeEligible: true, healthy: true });
  expect(mode).toMatch(/^(iptables|nftables|ipvs)$/);
  expect(Number(syncs)).toBeGreaterThan(0);
  expect(Number(calls)).toBeGreaterThan(0);
  expect(others).toEqual([]);
});
