import { createHash, randomBytes } from "node:crypto";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { configMaps, pods, secrets } from "../../agent/kube/resources.ts";
import type { Container, EnvVar, Volume } from "../../agent/kube/types.ts";
import { isFinished, isReady, openNamespace, type TestNamespace, until } from "./support/cluster.ts";
import { jobOf, podOf, shell } from "./support/pods.ts";

let cluster: TestNamespace;

beforeAll(async () => {
  cluster = await openNamespace(inject("kubeconfig"));
  await cluster.create(configMaps, {
    metadata: { name: "settings" },
    data: { color: "blue", "app.conf": "line 1\nline 2\n", SHAPE: "round" },
  });
  await cluster.create(secrets, {
    metadata: { name: "credentials" },
    data: { password: Buffer.from("s3cret").toString("base64") },
  });
});
afterAll(() => cluster[Symbol.asyncDispose]());

/** The lines that a job printed. */
async function linesOf(
  name: string,
  script: string,
  main: Partial<Container>,
  volumes: Volume[] = [],
): Promise<string[]> {
  const { output, exitCode } = await cluster.run(jobOf(name, script, { volumes }, main));
  expect({ output, exitCode }).toMatchObject({ exitCode: 0 });
  return output.trimEnd().split("\n");
}

const field = (name: string, fieldPath: string): EnvVar => ({ name, valueFrom: { fieldRef: { fieldPath } } });

describe.concurrent("a container's environment", () => {
  test("comes from literals, references and the pod itself", async () => {
    const env: EnvVar[] = [
      { name: "FIRST", value: "one" },
      { name: "SECOND", value: "$(FIRST) and $$(FIRST) and $(NOBODY)" },
      { name: "COLOR", valueFrom: { configMapKeyRef: { name: "settings", key: "color" } } },
      { name: "PASSWORD", valueFrom: { secretKeyRef: { name: "credentials", key: "password" } } },
      { name: "ABSENT", valueFrom: { configMapKeyRef: { name: "nobody", key: "x", optional: true } } },
      { name: "CPUS", valueFrom: { resourceFieldRef: { resource: "limits.cpu", divisor: "1m" } } },
      field("NAME", "metadata.name"),
      field("LABEL", "metadata.labels['team']"),
      field("POD_IP", "status.podIP"),
      field("HOST_IP", "status.hostIP"),
      field("NODE", "spec.nodeName"),
      field("ACCOUNT", "spec.serviceAccountName"),
    ];
    const names = ["FIRST", "SECOND", "COLOR", "PASSWORD", "CPUS", "NAME", "LABEL", "NODE", "ACCOUNT"];
    const print = names.map((name) => `echo "${name}=$${name}"`).join("; ");
    const job = jobOf(
      "env",
      `${print}; echo "absent=\${ABSENT-unset}"; echo "ips=$POD_IP,$HOST_IP"`,
      {},
      {
        env,
        resources: { limits: { cpu: "250m" } },
      },
    );
    const { output } = await cluster.run({ ...job, metadata: { name: "env", labels: { team: "red" } } });
    const pod = await cluster.getPod("env");
    expect(output.trimEnd().split("\n")).toEqual([
      "FIRST=one",
      "SECOND=one and $(FIRST) and $(NOBODY)",
      "COLOR=blue",
      "PASSWORD=s3cret",
      "CPUS=250",
      "NAME=env",
      "LABEL=red",
      `NODE=${pod.spec.nodeName}`,
      "ACCOUNT=default",
      "absent=unset",
      `ips=${pod.status?.podIP},${pod.status?.hostIP}`,
    ]);
  });

  test("takes all keys of a config map, with a prefix, and knows the API server's Service", async () => {
    const envFrom = [{ configMapRef: { name: "settings" }, prefix: "APP_" }];
    const lines = await linesOf("env-from", 'echo "$APP_SHAPE $APP_color"; echo "$KUBERNETES_SERVICE_HOST"', {
      envFrom,
    });
    expect(lines[0]).toBe("round blue");
    expect(lines[1]).toMatch(/^[0-9a-f.:]+$/);
  });

  test("is put into command and arguments", async () => {
    const pod = podOf(
      "args",
      [
        {
          ...shell("main", ""),
          command: ["sh", "-c", 'echo "$0 $1" > /dev/termination-log', "$(GREETING)"],
          args: ["$(NAME)"],
          env: [{ name: "GREETING", value: "hello" }, field("NAME", "metadata.name")],
        },
      ],
      { restartPolicy: "Never" },
    );
    expect((await cluster.run(pod)).output).toBe("hello args\n");
  });
});

describe.concurrent("a volume", () => {
  // From a change of an object until a pod has seen it. The reference needs up to its sync period, 1 min and a half.
  const followMs = 20_000;

  test("of kind configMap has its keys as files, at paths and with modes of choice", async () => {
    const volumes: Volume[] = [
      { name: "all", configMap: { name: "settings" } },
      { name: "one", configMap: { name: "settings", items: [{ key: "app.conf", path: "etc/app.conf", mode: 0o400 }] } },
    ];
    const volumeMounts = [
      { name: "all", mountPath: "/all" },
      { name: "one", mountPath: "/one" },
    ];
    const script = "ls /all | tr '\\n' ' '; echo; cat /one/etc/app.conf; stat -Lc %a /all/color /one/etc/app.conf";
    const lines = await linesOf("config-map", script, { volumeMounts }, volumes);
    expect(lines).toEqual(["SHAPE app.conf color ", "line 1", "line 2", "644", "400"]);
  });

  test("of kind configMap follows the object", async () => {
    await cluster.create(configMaps, { metadata: { name: "changing" }, data: { value: "old" } });
    const volumes: Volume[] = [{ name: "config", configMap: { name: "changing" } }];
    const volumeMounts = [{ name: "config", mountPath: "/config" }];
    const script = "until grep -q new /config/value; do sleep 0.2; done; cat /config/value";
    await cluster.createPod(jobOf("follows", script, { volumes }, { volumeMounts }));
    await cluster.waitForPod("follows", "ready", isReady);
    const patch = { data: { value: "new" } };
    const key = { namespace: cluster.namespace, name: "changing" };
    await cluster.client.patch(configMaps, key, patch, { type: "merge" });
    const pod = await cluster.waitForPod("follows", "finished", isFinished, followMs);
    expect(pod.status?.phase).toBe("Succeeded");
  });

  test("of kind secret follows an object that is deleted and made again, and serves the old content in between", async () => {
    const data = (text: string) => ({ password: Buffer.from(text).toString("base64") });
    await cluster.create(secrets, { metadata: { name: "fickle" }, data: data("old") });
    const volumes: Volume[] = [{ name: "secret", secret: { secretName: "fickle" } }];
    const volumeMounts = [{ name: "secret", mountPath: "/secret" }];
    const script = "until grep -q new /secret/password; do cat /secret/password > /dev/null || exit 1; sleep 0.1; done";
    await cluster.createPod(jobOf("recreated", script, { volumes }, { volumeMounts }));
    await cluster.waitForPod("recreated", "ready", isReady);
    await cluster.client.delete(secrets, { namespace: cluster.namespace, name: "fickle" });
    const why = 'MountVolume.SetUp failed for volume "secret" : secret "fickle" not found';
    await until("an event about the missing Secret", async () =>
      (await cluster.eventsOf("recreated")).some(({ reason, message }) => reason === "FailedMount" && message === why),
    );
    await cluster.create(secrets, { metadata: { name: "fickle" }, data: data("new") });
    const pod = await cluster.waitForPod("recreated", "finished", isFinished, followMs);
    expect(pod.status?.phase).toBe("Succeeded");
  });

  test("of an optional object fills when it appears, empties when it goes", async () => {
    const volumes: Volume[] = [{ name: "config", configMap: { name: "perhaps", optional: true } }];
    const volumeMounts = [{ name: "config", mountPath: "/config" }];
    const script =
      "test -e /config/a && exit 1; touch /tmp/ready; until test -e /config/a; do sleep 0.1; done; cat /config/a; rm /tmp/ready; while test -e /config/a; do sleep 0.1; done; echo gone";
    const readinessProbe = { exec: { command: ["test", "-e", "/tmp/ready"] }, periodSeconds: 1, failureThreshold: 1 };
    await cluster.createPod(jobOf("optional", script, { volumes }, { volumeMounts, readinessProbe }));
    await cluster.waitForPod("optional", "ready", isReady);
    await cluster.create(configMaps, { metadata: { name: "perhaps" }, data: { a: "there\n" } });
    await cluster.waitForPod("optional", "seeing the file", (pod) => !isReady(pod), followMs);
    await cluster.client.delete(configMaps, { namespace: cluster.namespace, name: "perhaps" });
    const { status } = await cluster.waitForPod("optional", "finished", isFinished, followMs);
    expect(status?.containerStatuses?.[0]?.state?.terminated?.message).toBe("there\ngone\n");
  });

  test("of kind projected follows its Secret and the pod's own labels", async () => {
    const data = (text: string) => ({ key: Buffer.from(text).toString("base64") });
    await cluster.create(secrets, { metadata: { name: "projected" }, data: data("old") });
    const sources = [
      { secret: { name: "projected", items: [{ key: "key", path: "deep/key" }] } },
      { downwardAPI: { items: [{ path: "labels", fieldRef: { fieldPath: "metadata.labels" } }] } },
    ];
    const volumes: Volume[] = [{ name: "all", projected: { sources } }];
    const volumeMounts = [{ name: "all", mountPath: "/all" }];
    const script = "until grep -q new /all/deep/key && grep -q blue /all/labels; do sleep 0.1; done; cat /all/labels";
    const job = jobOf("projected", script, { volumes }, { volumeMounts });
    await cluster.createPod({ ...job, metadata: { name: "projected", labels: { color: "red" } } });
    await cluster.waitForPod("projected", "ready", isReady);
    const { client, namespace } = cluster;
    await client.patch(secrets, { namespace, name: "projected" }, { data: data("new") }, { type: "merge" });
    const labels = { metadata: { labels: { color: "blue" } } };
    await client.patch(pods, { namespace, name: "projected" }, labels, { type: "merge" });
    const { status } = await cluster.waitForPod("projected", "finished", isFinished, followMs);
    expect(status?.containerStatuses?.[0]?.state?.terminated?.message).toBe('color="blue"');
  });

  test("holds as much as an object can, byte for byte, at paths of choice", async () => {
    const bytes = randomBytes(500_000);
    const text = "ü€\n".repeat(80_000);
    const object = { data: { "big.txt": text }, binaryData: { "big.bin": bytes.toString("base64") } };
    await cluster.create(configMaps, { metadata: { name: "big" }, ...object });
    const items = [
      { key: "big.txt", path: "a/b/c/big.txt" },
      { key: "big.bin", path: "a/..bin", mode: 0o440 },
    ];
    const volumes: Volume[] = [{ name: "big", configMap: { name: "big", items } }];
    const volumeMounts = [{ name: "big", mountPath: "/big" }];
    const script = "cd /big/a; sha256sum b/c/big.txt ..bin | cut -d' ' -f1; stat -Lc %a ..bin";
    const sum = (data: string | Buffer) => createHash("sha256").update(data).digest("hex");
    expect(await linesOf("big", script, { volumeMounts }, volumes)).toEqual([sum(text), sum(bytes), "440"]);
  });

  test("of kind secret lies in memory and is readable", async () => {
    const volumes: Volume[] = [{ name: "secret", secret: { secretName: "credentials" } }];
    const volumeMounts = [{ name: "secret", mountPath: "/secret", readOnly: true }];
    const script = "cat /secret/password; echo; stat -f -c %T /secret; touch /secret/x 2>/dev/null || echo read-only";
    expect(await linesOf("secret", script, { volumeMounts }, volumes)).toEqual(["s3cret", "tmpfs", "read-only"]);
  });

  test("of kind downwardAPI tells the pod about itself", async () => {
    const volumes: Volume[] = [
      {
        name: "info",
        downwardAPI: {
          items: [
            { path: "name", fieldRef: { fieldPath: "metadata.name" } },
            { path: "memory", resourceFieldRef: { containerName: "main", resource: "limits.memory", divisor: "1Mi" } },
          ],
        },
      },
    ];
    const main = { volumeMounts: [{ name: "info", mountPath: "/info" }], resources: { limits: { memory: "32Mi" } } };
    const lines = await linesOf("downward", "cat /info/name; echo; cat /info/memory", main, volumes);
    expect(lines).toEqual(["downward", "32"]);
  });

  test("of a service account holds a token that is bound to the pod, and the cluster's CA", async () => {
    const dir = "/var/run/secrets/kubernetes.io/serviceaccount";
    const script = `cat ${dir}/namespace; echo; grep -c 'BEGIN CERT' ${dir}/ca.crt; cut -d. -f2 ${dir}/token`;
    const [namespace, certificates, payload = ""] = await linesOf("token", script, {});
    expect(namespace).toBe(cluster.namespace);
    expect(Number(certificates)).toBeGreaterThanOrEqual(1);
    const claims = JSON.parse(Buffer.from(payload, "base64url").toString()) as Record<string, unknown>;
    const { metadata } = await cluster.getPod("token");
    expect(claims["kubernetes.io"]).toMatchObject({ pod: { name: "token", uid: metadata.uid } });
  });

  test("of kind emptyDir is shared by containers and survives their restarts", async () => {
    const volumeMounts = [{ name: "shared", mountPath: "/shared" }];
    const writer = shell("writer", "echo from writer > /shared/note; while true; do sleep 1; done", { volumeMounts });
    const script =
      "until test -e /shared/note; do sleep 0.1; done; echo run >> /shared/runs; test $(wc -l < /shared/runs) -ge 2 || exit 1; cat /shared/note > /dev/termination-log; while true; do sleep 1; done";
    const reader = shell("reader", script, { volumeMounts });
    await cluster.createPod(podOf("empty-dir", [reader, writer], { volumes: [{ name: "shared", emptyDir: {} }] }));
    const pod = await cluster.waitForPod("empty-dir", "restarted and ready", (p) => {
      const status = p.status?.containerStatuses?.find(({ name }) => name === "reader");
      return status?.restartCount === 1 && status.ready;
    });
    expect(pod.status?.phase).toBe("Running");
  });

  test("of kind emptyDir can lie in memory, with a limit", async () => {
    const volumes: Volume[] = [{ name: "memory", emptyDir: { medium: "Memory", sizeLimit: "4Mi" } }];
    const volumeMounts = [{ name: "memory", mountPath: "/memory" }];
    const script = "stat -f -c %T /memory; dd if=/dev/zero of=/memory/big bs=1M count=8 2>/dev/null || echo full";
    expect(await linesOf("memory", script, { volumeMounts }, volumes)).toEqual(["tmpfs", "full"]);
  });

  test("of kind hostPath shows the node's files", async () => {
    const volumes: Volume[] = [{ name: "etc", hostPath: { path: "/etc", type: "Directory" } }];
    const volumeMounts = [{ name: "etc", mountPath: "/host/etc", readOnly: true }];
    expect(await linesOf("host-path", "test -f /host/etc/passwd && echo there", { volumeMounts }, volumes)).toEqual([
      "there",
    ]);
  });

  test("can be mounted in part", async () => {
    const volumes: Volume[] = [
      { name: "config", configMap: { name: "settings" } },
      { name: "data", emptyDir: {} },
    ];
    const volumeMounts = [
      { name: "config", mountPath: "/etc/color", subPath: "color" },
      { name: "data", mountPath: "/data", subPath: "a/b" },
    ];
    const script = "cat /etc/color; echo; touch /data/x && ls /data";
    expect(await linesOf("sub-path", script, { volumeMounts }, volumes)).toEqual(["blue", "x"]);
  });
});

describe.concurrent("init containers", () => {
  test("run one after the other, before the others", async () => {
    const volumeMounts = [{ name: "order", mountPath: "/order" }];
    const note = (name: string, delay: number) =>
      shell(name, `sleep ${delay}; echo ${name} >> /order/list`, { volumeMounts });
    const pod = jobOf(
      "init",
      "cat /order/list",
      {
        initContainers: [note("first", 1), note("second", 0)],
        volumes: [{ name: "order", emptyDir: {} }],
      },
      { volumeMounts },
    );
    expect((await cluster.run(pod)).output).toBe("first\nsecond\n");
    const { status } = await cluster.getPod("init");
    expect(status?.initContainerStatuses?.map(({ name, state }) => [name, state?.terminated?.exitCode])).toEqual([
      ["first", 0],
      ["second", 0],
    ]);
  });

  test("that fail, with restartPolicy Never, fail the pod", async () => {
    const pod = jobOf("init-fails", "echo never", {
      initContainers: [shell("broken", "exit 4"), shell("later", "true")],
    });
    await cluster.createPod(pod);
    const { status } = await cluster.waitForPod("init-fails", "finished", isFinished);
    expect(status?.phase).toBe("Failed");
    expect(status?.initContainerStatuses?.[0]?.state?.terminated?.exitCode).toBe(4);
    expect(status?.containerStatuses?.[0]?.state?.waiting?.reason).toBe("PodInitializing");
  });

  test("that fail are tried again otherwise", async () => {
    const volumeMounts = [{ name: "data", mountPath: "/data" }];
    const script = "test -e /data/seen && exit 0; touch /data/seen; exit 1";
    const pod = podOf("init-retries", [shell("main", "true")], {
      restartPolicy: "OnFailure",
      initContainers: [shell("flaky", script, { volumeMounts })],
      volumes: [{ name: "data", emptyDir: {} }],
    });
    await cluster.createPod(pod);
    const { status } = await cluster.waitForPod("init-retries", "finished", isFinished);
    expect(status?.phase).toBe("Succeeded");
    expect(status?.initContainerStatuses?.[0]?.restartCount).toBe(1);
  });
});

describe.concurrent("a container", () => {
  test("runs as the user and with the rights that it was given", async () => {
    const securityContext = {
      runAsUser: 1000,
      runAsGroup: 1000,
      readOnlyRootFilesystem: true,
      allowPrivilegeEscalation: false,
      capabilities: { drop: ["ALL"] },
    };
    const script =
      "id -u; id -g; touch /x 2>/dev/null || echo read-only; grep -E 'CapEff|NoNewPrivs' /proc/self/status";
    expect(await linesOf("rights", script, { securityContext })).toEqual([
      "1000",
      "1000",
      "read-only",
      "CapEff:\t0000000000000000",
      "NoNewPrivs:\t1",
    ]);
  });

  test("finds its own name in /etc/hosts", async () => {
    const { output } = await cluster.run(
      jobOf("hosts", "hostname; cat /etc/hosts", { hostAliases: [{ ip: "192.0.2.7", hostnames: ["legacy"] }] }),
    );
    const { status } = await cluster.getPod("hosts");
    expect(output.split("\n")[0]).toBe("hosts");
    expect(output).toContain(`${status?.podIP}\thosts\n`);
    expect(output).toContain("192.0.2.7\tlegacy\n");
  });

  test("is held to its memory limit by its cgroup", async () => {
    const main = { resources: { limits: { memory: "48Mi", cpu: "500m" } } };
    const script = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null";
    const { output } = await cluster.run(jobOf("limits", script, {}, main));
    expect(output.trim()).toBe(String(48 * 2 ** 20));
    expect((await cluster.getPod("limits")).status?.qosClass).toBe("Guaranteed");
  });

  test("of a failed pod can leave its last words in the log", async () => {
    const main = shell("main", "echo last words; exit 1", { terminationMessagePolicy: "FallbackToLogsOnError" });
    expect(await cluster.run(podOf("last-words", [main], { restartPolicy: "Never" }))).toEqual({
      output: "last words\n",
      exitCode: 1,
    });
  });
});
