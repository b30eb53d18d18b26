import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { configMaps, pods, services } from "../../agent/kube/resources.ts";
import type { Container, EnvVar, Pod, PodSpec } from "../../agent/kube/types.ts";
import { isFinished, openNamespace, type TestNamespace, until } from "./support/cluster.ts";
import { jobOf, podOf, serviceOf, shell } from "./support/pods.ts";

// What a process finds around itself: variables, and the file for its last words. Names are in names.test.ts.

let cluster: TestNamespace;

beforeAll(async () => {
  cluster = await openNamespace(inject("kubeconfig"));
});
afterAll(() => cluster[Symbol.asyncDispose]());

async function linesOf(pod: Pod): Promise<string[]> {
  const { output, exitCode } = await cluster.run(pod);
  expect({ output, exitCode }).toMatchObject({ exitCode: 0 });
  return output.trimEnd().split("\n");
}

/** Prints variables, each as `NAME=value`. */
const print = (names: readonly string[]) => names.map((name) => `echo "${name}=$${name}"`).join("; ");
const field = (name: string, fieldPath: string): EnvVar => ({ name, valueFrom: { fieldRef: { fieldPath } } });
const resource = (name: string, of: string, divisor?: string, containerName?: string): EnvVar => ({
  name,
  valueFrom: {
    resourceFieldRef: {
      resource: of,
      ...(divisor === undefined ? {} : { divisor }),
      ...(containerName === undefined ? {} : { containerName }),
    },
  },
});

describe.concurrent("variables", () => {
  test("tell every field of the pod that there is a path for", async () => {
    const env = [
      field("NAME", "metadata.name"),
      field("NAMESPACE", "metadata.namespace"),
      field("POD_UID", "metadata.uid"),
      field("LABEL", "metadata.labels['example.com/team']"),
      field("NOTE", "metadata.annotations['note']"),
      field("NO_NOTE", "metadata.annotations['constructor']"),
      field("NODE", "spec.nodeName"),
      field("ACCOUNT", "spec.serviceAccountName"),
      field("POD_IP", "status.podIP"),
      field("POD_IPS", "status.podIPs"),
      field("HOST_IP", "status.hostIP"),
      field("HOST_IPS", "status.hostIPs"),
    ];
    const job = jobOf("fields", print(env.map(({ name }) => name)), {}, { env });
    const metadata = { name: "fields", labels: { "example.com/team": "red" }, annotations: { note: "$(NAME) stays" } };
    const lines = await linesOf({ ...job, metadata });
    const { metadata: is, spec, status } = await cluster.getPod("fields");
    const ips = (list: { ip: string }[] | undefined) => (list ?? []).map(({ ip }) => ip).join(",");
    expect(lines).toEqual([
      "NAME=fields",
      `NAMESPACE=${cluster.namespace}`,
      `POD_UID=${is.uid}`,
      "LABEL=red",
      "NOTE=$(NAME) stays",
      "NO_NOTE=",
      `NODE=${spec.nodeName}`,
      "ACCOUNT=default",
      `POD_IP=${status?.podIP}`,
      `POD_IPS=${ips(status?.podIPs)}`,
      `HOST_IP=${status?.hostIP}`,
      `HOST_IPS=${ips(status?.hostIPs)}`,
    ]);
  });

  test("on the host's network have the host's addresses for the pod's", async () => {
    const env = [field("POD_IP", "status.podIP"), field("HOST_IP", "status.hostIP")];
    const script = 'test -n "$POD_IP" && test "$POD_IP" = "$HOST_IP" && echo same';
    expect(await linesOf(jobOf("host-fields", script, { hostNetwork: true }, { env }))).toEqual(["same"]);
  });

  test("tell resources in units of choice, rounded up; what is not limited is the node's", async () => {
    const env = [
      resource("CPU", "limits.cpu"),
      resource("MILLI", "limits.cpu", "1m"),
      resource("REQUEST", "requests.cpu", "1m"),
      resource("MEMORY", "requests.memory"),
      resource("MIB", "requests.memory", "1Mi"),
      resource("NODE_MEMORY", "limits.memory"),
      resource("OTHER", "limits.cpu", "1m", "other"),
      resource("INIT", "limits.cpu", "1m", "init"),
      resource("NONE", "requests.ephemeral-storage"),
    ];
    const main: Partial<Container> = {
      env,
      resources: { limits: { cpu: "250m" }, requests: { cpu: "100m", memory: "33554433" } },
    };
    const spec = { initContainers: [shell("init", "true")] };
    const pod = jobOf("resources", print(env.map(({ name }) => name)), spec, main);
    pod.spec.containers.push(shell("other", "true", { resources: { limits: { cpu: "20m" } } }));
    const lines = await linesOf(pod);
    const { nodeName } = (await cluster.getPod("resources")).spec;
    const node = (await cluster.readyNodes()).find(({ metadata }) => metadata.name === nodeName);
    const allocatable = String(node?.status?.allocatable?.["memory"] ?? "");
    const bytes = allocatable.endsWith("Ki") ? Number.parseInt(allocatable) * 1024 : Number(allocatable);
    expect(lines).toEqual([
      "CPU=1",
      "MILLI=250",
      "REQUEST=100",
      "MEMORY=33554433",
      "MIB=33",
      `NODE_MEMORY=${bytes}`,
      "OTHER=20",
      "INIT=0",
      "NONE=0",
    ]);
  });

  test("take the pod's own limits before the node's", async () => {
    const env = [resource("CPU", "limits.cpu", "1m"), resource("MEMORY", "limits.memory", "1Mi")];
    const spec: Partial<PodSpec> = { resources: { limits: { cpu: "600m", memory: "64Mi" } } };
    expect(await linesOf(jobOf("pod-level", print(["CPU", "MEMORY"]), spec, { env }))).toEqual([
      "CPU=600",
      "MEMORY=64",
    ]);
  });

  test("tell of Services of the namespace, unless the pod does not want to know", async () => {
    const made = await cluster.create(
      services,
      serviceOf("my-db", { selector: { app: "db" }, ports: [{ name: "sql-tcp", port: 5432 }] }),
    );
    const ip = made.spec?.clusterIP ?? "";
    const host = ip.includes(":") ? `[${ip}]` : ip;
    const names = [
      "MY_DB_SERVICE_HOST",
      "MY_DB_SERVICE_PORT",
      "MY_DB_SERVICE_PORT_SQL_TCP",
      "MY_DB_PORT",
      "MY_DB_PORT_5432_TCP",
      "MY_DB_PORT_5432_TCP_PROTO",
      "MY_DB_PORT_5432_TCP_PORT",
      "MY_DB_PORT_5432_TCP_ADDR",
      "URL",
    ];
    const env = [{ name: "URL", value: "sql://$(MY_DB_SERVICE_HOST):$(MY_DB_SERVICE_PORT)/" }];
    expect(await linesOf(jobOf("links", print(names), {}, { env }))).toEqual([
      `MY_DB_SERVICE_HOST=${ip}`,
      "MY_DB_SERVICE_PORT=5432",
      "MY_DB_SERVICE_PORT_SQL_TCP=5432",
      `MY_DB_PORT=tcp://${host}:5432`,
      `MY_DB_PORT_5432_TCP=tcp://${host}:5432`,
      "MY_DB_PORT_5432_TCP_PROTO=tcp",
      "MY_DB_PORT_5432_TCP_PORT=5432",
      `MY_DB_PORT_5432_TCP_ADDR=${ip}`,
      `URL=sql://${ip}:5432/`,
    ]);
    const script = 'env | grep -c MY_DB; test -n "$KUBERNETES_SERVICE_HOST" && echo knows';
    expect(await linesOf(jobOf("no-links", script, { enableServiceLinks: false }))).toEqual(["0", "knows"]);
  });

  test("are expanded in command and arguments, once, and only where they are known", async () => {
    const main: Partial<Container> = {
      command: ["sh", "-c", 'printf "%s\\n" "$@" > /dev/termination-log', "sh"],
      args: ["$(A)", "$$(A)", "$(B)", "$(NOBODY)", "$A", "$", "$(", "ü$(A)€"],
      env: [
        { name: "A", value: "one" },
        { name: "B", value: "$$(A)" },
      ],
    };
    const pod = podOf("expansion", [{ ...shell("main", ""), ...main }], { restartPolicy: "Never" });
    expect(await linesOf(pod)).toEqual(["one", "$(A)", "$(A)", "$(NOBODY)", "$A", "$", "$(", "üone€"]);
  });

  test("come from a file that an init container wrote", async () => {
    const volumeMounts = [{ name: "env", mountPath: "/env" }];
    const text = "# settings\\nPLAIN='a value'\\n  LINES='first\n second' # two\\nEMPTY=''";
    const from = (name: string, more: object = {}): EnvVar => ({
      name,
      valueFrom: { fileKeyRef: { volumeName: "env", path: "app.env", key: name, ...more } },
    });
    const pod = jobOf(
      "file-keys",
      `${print(["PLAIN", "LINES"])}; echo "\${EMPTY-unset}"; test -e /env && echo mounted || echo "not mounted"`,
      {
        initContainers: [shell("writer", `printf "${text}" > /env/app.env`, { volumeMounts })],
        volumes: [{ name: "env", emptyDir: {} }],
      },
      { env: [from("PLAIN"), from("LINES"), from("EMPTY", { optional: true })] },
    );
    expect(await linesOf(pod)).toEqual(["PLAIN=a value", "LINES=first", " second", "unset", "not mounted"]);
  });
});

describe.concurrent("a container whose configuration cannot be made", () => {
  // A server that is slow to answer at first is another reason to wait, which passes.
  const waitingFor = async (name: string, pod: Pod, why: RegExp) => {
    await cluster.createPod(pod);
    const waitingOf = ({ status }: Pod) => status?.containerStatuses?.[0]?.state?.waiting;
    const seen = await cluster.waitForPod(name, `waiting for ${why.source}`, (shown) => {
      const { reason, message = "" } = waitingOf(shown) ?? {};
      return reason === "CreateContainerConfigError" && why.test(message);
    });
    return waitingOf(seen)?.message ?? "";
  };
  /** The events that say so; equal ones are one that is counted. */
  const failuresOf = async (name: string, why: string) =>
    await until("an event", async () => {
      const found = (await cluster.eventsOf(name)).filter(({ message }) => message === `Error: ${why}`);
      if (found.length === 0) return undefined;
      return found.map(({ reason, type, involvedObject: { fieldPath } }) => ({ reason, type, fieldPath }));
    });
  const failure = { reason: "Failed", type: "Warning", fieldPath: "spec.containers{main}" };

  test("says what is missing, once for each try, and starts when it is there", async () => {
    const env = [{ name: "A", valueFrom: { configMapKeyRef: { name: "late", key: "a" } } }];
    const message = await waitingFor("late", jobOf("late", print(["A"]), {}, { env }), /not found/);
    expect(message).toBe('configmap "late" not found');
    expect(await failuresOf("late", message)).toEqual([failure]);

    const object = await cluster.create(configMaps, { metadata: { name: "late" }, data: { b: "no" } });
    await cluster.waitForPod(
      "late",
      "waiting for the key",
      ({ status }) =>
        status?.containerStatuses?.[0]?.state?.waiting?.message ===
        `couldn't find key a in ConfigMap ${cluster.namespace}/late`,
    );
    await cluster.client.update(configMaps, { ...object, data: { a: "yes" } });
    const { status } = await cluster.waitForPod("late", "finished", isFinished);
    expect(status?.containerStatuses?.[0]?.state?.terminated?.message).toBe("A=yes\n");
  });

  test("starts when the annotation that it wants is put right", async () => {
    const main: Partial<Container> = {
      env: [field("DIR", "metadata.annotations['dir']")],
      volumeMounts: [{ name: "data", mountPath: "/data", subPathExpr: "$(DIR)" }],
    };
    const pod = jobOf("mended", "echo started", { volumes: [{ name: "data", emptyDir: {} }] }, main);
    await waitingFor("mended", { ...pod, metadata: { name: "mended", annotations: { dir: "/absolute" } } }, /absolute/);
    const metadata = { annotations: { dir: "relative" } };
    const key = { namespace: cluster.namespace, name: "mended" };
    await cluster.client.patch(pods, key, { metadata }, { type: "merge" });
    const { status } = await cluster.waitForPod("mended", "finished", isFinished);
    expect(status?.containerStatuses?.[0]?.state?.terminated?.message).toBe("started\n");
  });

  const ref = { volumeName: "env", path: "app.env", key: "A", optional: true };
  const mounted = { volumes: [{ name: "env", emptyDir: {} }] };
  const cases: { name: string; spec?: Partial<PodSpec>; main: Partial<Container>; why: RegExp }[] = [
    {
      name: "a missing Secret",
      main: { envFrom: [{ secretRef: { name: "nobody" } }] },
      why: /^secret "nobody" not found$/,
    },
    {
      name: "an environment file that is not there, even if optional",
      spec: {
        ...mounted,
        initContainers: [shell("i", "true", { volumeMounts: [{ name: "env", mountPath: "/env" }] })],
      },
      main: { env: [{ name: "A", valueFrom: { fileKeyRef: ref } }] },
      why: /^couldn't parse env file app\.env of volume "env": /,
    },
    {
      name: "a user that may not be root",
      main: { securityContext: { runAsNonRoot: true, runAsUser: 0 } },
      why: /^container's runAsUser breaks non-root policy/,
    },
    {
      name: "a subPathExpr of unknown variables",
      spec: mounted,
      main: { volumeMounts: [{ name: "env", mountPath: "/env", subPathExpr: "$(NOBODY)" }] },
      why: /NOBODY/,
    },
  ];
  for (const [index, { name, spec, main, why }] of cases.entries()) {
    test(`for want of: ${name}`, async () => {
      const podName = `refused-${index}`;
      const message = await waitingFor(podName, jobOf(podName, "true", spec, main), why);
      expect(await failuresOf(podName, message)).toEqual([failure]);
    });
  }
});

describe.concurrent("the termination log", () => {
  test("can be written by any user, and is wherever the container wants it", async () => {
    const script = "stat -Lc %a /tmp/last-words > /tmp/last-words; id -u >> /tmp/last-words";
    const main = shell("main", script, {
      terminationMessagePath: "tmp/last-words", // below the root, as containers have no other place to begin at
      securityContext: { runAsUser: 1234, runAsGroup: 1234 },
    });
    expect((await cluster.run(podOf("last-words", [main], { restartPolicy: "Never" }))).output).toBe("666\n1234\n");
  });

  test("is another one for each instance", async () => {
    const volumeMounts = [{ name: "runs", mountPath: "/runs" }];
    const script =
      "cat /dev/termination-log > /runs/found; echo x >> /runs/count; wc -l < /runs/count > /dev/termination-log; test $(wc -l < /runs/count) -ge 2";
    const pod = podOf("instances", [shell("main", script, { volumeMounts })], {
      restartPolicy: "OnFailure",
      volumes: [{ name: "runs", emptyDir: {} }],
    });
    await cluster.createPod(pod);
    const { status } = await cluster.waitForPod("instances", "finished", isFinished);
    const [container] = status?.containerStatuses ?? [];
    expect(container?.lastState?.terminated?.message).toBe("1\n");
    expect(container?.state?.terminated?.message).toBe("2\n");
  });
});

test("variables are as they were when the container began, whatever changes after", async () => {
  await cluster.create(configMaps, { metadata: { name: "fixed" }, data: { a: "old" } });
  const env = [{ name: "A", valueFrom: { configMapKeyRef: { name: "fixed", key: "a" } } }];
  const volumes = [{ name: "fixed", configMap: { name: "fixed" } }];
  const volumeMounts = [{ name: "fixed", mountPath: "/fixed" }];
  const script = "until grep -q new /fixed/a; do sleep 0.1; done; echo $A";
  await cluster.createPod(jobOf("fixed-env", script, { volumes }, { env, volumeMounts }));
  await cluster.waitForPod("fixed-env", "running", ({ status }) => status?.phase === "Running");
  const key = { namespace: cluster.namespace, name: "fixed" };
  await cluster.client.patch(configMaps, key, { data: { a: "new" } }, { type: "merge" });
  const { status } = await cluster.waitForPod("fixed-env", "finished", isFinished);
  expect(status?.containerStatuses?.[0]?.state?.terminated?.message).toBe("old\n");
});
