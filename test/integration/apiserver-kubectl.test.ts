import { existsSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { createServer, type Server } from "node:https";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { nodes, pods } from "../../agent/kube/resources.ts";
import { exec } from "../../agent/lib/exec.ts";
import { startTestApiServer, type TestApiServer } from "../support/apiserver/server.ts";

// kubectl of the machine, and another one (Debian's old one, say) by TEST_KUBECTL.
const kubectls = [...new Set([process.env["TEST_KUBECTL"], "/usr/bin/kubectl", "/usr/local/bin/kubectl"])].filter(
  (path): path is string => path !== undefined && existsSync(path),
);

const app = `
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  containers:
  - {name: web, image: "busybox:1.35", ports: [{name: http, containerPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: http}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: web}
data: {color: blue}
`;

describe.skipIf(kubectls.length === 0).each(kubectls)("%s", (kubectl) => {
  let server: TestApiServer;
  let kubelet: Server;
  let dir: string;
  const kubeletRequests: string[] = [];

  const run = async (args: string[], stdin?: string) => {
    const env = { ...process.env, KUBECONFIG: join(dir, "kubeconfig"), HOME: dir, EDITOR: "sed -i s/blue/green/" };
    const result = await exec(kubectl, args, { timeoutMs: 20_000, env, ...(stdin === undefined ? {} : { stdin }) });
    return { ok: result.failure === undefined, out: result.stdout, err: result.stderr };
  };
  const out = async (args: string, stdin?: string) => {
    const result = await run(args.split(" "), stdin);
    expect(result, args).toMatchObject({ ok: true });
    return result.out;
  };

  beforeAll(async () => {
    dir = await mkdtemp(join(tmpdir(), "kubectl-"));
    server = await startTestApiServer();
    await writeFile(join(dir, "kubeconfig"), server.kubeconfig("admin"), { mode: 0o600 });
    await writeFile(join(dir, "app.yaml"), app);
    const { certificate, key } = server.issueCertificate({ commonName: "n1", usage: "server", names: ["127.0.0.1"] });
    kubelet = createServer({ cert: certificate, key }, (request, response) => {
      kubeletRequests.push(request.url ?? "");
      if (request.url?.startsWith("/stats/summary") === true) {
        const cpu = { usageNanoCores: 250_000_000 };
        const memory = { workingSetBytes: 64 << 20 };
        const container = { name: "web", cpu, memory };
        const podStats = { podRef: { name: "web", namespace: "default" }, containers: [container] };
        response.end(JSON.stringify({ node: { nodeName: "n1", cpu, memory }, pods: [podStats] }));
      } else if (request.url?.includes("/nothere/") === true) response.writeHead(404).end("no such pod");
      else response.end("hello from the pod\n");
    });
    await new Promise<void>((resolve) => kubelet.listen(0, "127.0.0.1", resolve));
    const address = kubelet.address();
    const port = typeof address === "object" && address !== null ? address.port : 0;
    server.objects.create(nodes, {
      metadata: { name: "n1" },
      status: {
        conditions: [{ type: "Ready", status: "True" }],
        addresses: [{ type: "InternalIP", address: "127.0.0.1" }],
        capacity: { cpu: "1", memory: "1Gi" },
        allocatable: { cpu: "1", memory: "1Gi" },
        daemonEndpoints: { kubeletEndpoint: { Port: port } },
      },
    });
  });
  afterEach(() => {
    for (const { metadata } of server.objects.list(pods)) {
      server.objects.delete(
        pods,
        { namespace: metadata.namespace ?? "", name: metadata.name },
        { gracePeriodSeconds: 0 },
      );
    }
  });
  afterAll(async () => {
    await server?.close();
    await new Promise((resolve) => kubelet?.close(resolve));
    await rm(dir, { recursive: true, force: true });
  });

  const applyApp = async () => {
    const text = await out(`apply -f ${join(dir, "app.yaml")}`);
    server.objects.patch(
      pods,
      { name: "web" },
      {
        status: {
          phase: "Running",
          podIP: "10.1.2.3",
          conditions: [{ type: "Ready", status: "True" }],
          containerStatuses: [
            { name: "web", ready: true, restartCount: 0, image: "busybox:1.35", imageID: "", state: { running: {} } },
          ],
        },
      },
      { subresource: "status" },
    );
    return text;
  };

  test("apply, get, describe", async () => {
    expect(await applyApp()).toContain("pod/web created");
    expect(await out(`apply -f ${join(dir, "app.yaml")}`)).toBe(
      "pod/web unchanged\nservice/web unchanged\nconfigmap/web unchanged\n",
    );
    expect(await out("get pods -o wide")).toMatch(/web\s+1\/1\s+Running\s+0\s+\d+s\s+10\.1\.2\.3\s+n1/);
    expect(await out("get nodes")).toMatch(/n1\s+Ready/);
    expect(await out("get services web")).toMatch(/web\s+NodePort\s+10\.96\.\S+\s+<none>\s+80:3\d{4}\/TCP/);
    expect(await out("get endpointslices")).toMatch(/web-\S+\s+IPv4\s+8080\s+10\.1\.2\.3/);
    expect(await out("get pod web -o name")).toBe("pod/web\n");
    expect(
      await out("get pods -A -l app=web --field-selector spec.nodeName=n1 -o jsonpath={.items[*].metadata.name}"),
    ).toBe("web");
    expect(await out("get pods web -o yaml")).toContain("kind: Pod");
    const described = await out("describe pod web");
    expect(described).toMatch(/Node:\s+n1/);
    expect(described).toContain("kube-api-access-");
    expect(await out("describe node n1")).toMatch(/default\s+web/);
    expect(await out("describe service web")).toContain("10.1.2.3:8080");
  });

  test("server-side apply, patches, labels, annotations, edit", async () => {
    await applyApp();
    expect(await out(`apply --server-side --force-conflicts -f ${join(dir, "app.yaml")}`)).toContain(
      "pod/web serverside-applied",
    );
    await out("label pod web tier=front");
    await out("annotate pod web note=hi");
    await run(["patch", "pod", "web", "-p", '{"metadata":{"labels":{"a":"1"}}}']);
    await run(["patch", "pod", "web", "--type=merge", "-p", '{"metadata":{"labels":{"tier":null}}}']);
    await run(["patch", "pod", "web", "--type=json", "-p", '[{"op":"add","path":"/metadata/labels/b","value":"2"}]']);
    expect(server.objects.get(pods, { name: "web" }).metadata).toMatchObject({
      labels: { app: "web", a: "1", b: "2" },
      annotations: { note: "hi" },
    });
    await out("edit configmap web");
    expect(await out("get configmap web -o jsonpath={.data.color}")).toBe("green");
  });

  test("create, dry run, and refusals in the server's words", async () => {
    await out("create configmap made --from-literal=a=b");
    expect(await out("get cm made -o jsonpath={.data}")).toBe('{"a":"b"}');
    await out("create configmap other --from-literal=a=b --dry-run=server");
    expect((await run(["get", "cm", "other"])).err).toContain('configmaps "other" not found');
    const again = await run(["create", "configmap", "made"]);
    expect(again.err).toContain('configmaps "made" already exists');
    const bad = await run(
      ["create", "-f", "-"],
      '{"apiVersion":"v1","kind":"Pod","metadata":{"name":"bad"},"spec":{"containers":[{"name":"c"}]}}',
    );
    expect(bad.err).toContain('The Pod "bad" is invalid: spec.containers[0].image: Required value');
    await out("delete cm made");
    await out("create namespace ns1");
    await out("delete namespace ns1");
    expect(await out("auth can-i create pods")).toBe("yes\n");
  });

  test("wait and watch see changes, graceful and forced deletion end", async () => {
    await applyApp();
    expect(await out("wait --for=condition=Ready pod/web --timeout=5s")).toBe("pod/web condition met\n");
    const before = server.requests.count({ verb: "watch", resource: "pods" });
    const watching = run(["get", "pods", "-w", "--request-timeout=2s"]);
    const deleting = run(["delete", "pod", "web", "--timeout=10s"]);
    await server.objects.waitFor(pods, { name: "web" }, (pod) => pod?.metadata.deletionGracePeriodSeconds === 30);
    const waiting = run(["wait", "--for=delete", "pod/web", "--timeout=5s"]);
    // Both have seen the pod and wait for its end.
    const watchesOf = () => server.requests.filter({ verb: "watch", resource: "pods" });
    await expect.poll(() => watchesOf().length - before, { timeout: 5_000 }).toBe(3);
    server.objects.delete(pods, { name: "web" }, { gracePeriodSeconds: 0 });
    expect((await deleting).out).toContain('pod "web" deleted');
    expect(await waiting).toMatchObject({ ok: true });
    expect((await watching).out).toMatch(/web\s+1\/1\s+Terminating/);
    await applyApp();
    await out("delete pod web --force --grace-period=0");
    expect(server.objects.find(pods, { name: "web" })).toBeUndefined();
  });

  test("logs, top and node proxy come from the kubelet", async () => {
    await applyApp();
    expect(await out("logs web --tail=5 --timestamps=false")).toBe("hello from the pod\n");
    expect(kubeletRequests.at(-1)).toBe("/containerLogs/default/web/web?tailLines=5");
    expect((await run(["logs", "web", "-c", "nope"])).err).toContain("container nope is not valid for pod web");
    expect(await out("get --raw /api/v1/nodes/n1/proxy/healthz?verbose=1")).toContain("hello");
    expect(kubeletRequests.at(-1)).toBe("/healthz?verbose=1");
    expect(await out("top node")).toMatch(/n1\s+250m\s+25%\s+64Mi\s+6%/);
    expect(await out("top pod")).toMatch(/web\s+250m\s+64Mi/);
  });

  test("the rest that people try first", async () => {
    expect(await out("version")).toContain("v1.36.2");
    expect(await out("cluster-info")).toContain(server.url);
    expect(await out("api-resources")).toMatch(/endpointslices\s+discovery.k8s.io\/v1/);
    expect(await out("get events -A")).toBe("");
    expect(await out("get all")).toContain("service/kubernetes");
  });
});
