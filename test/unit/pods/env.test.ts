import { beforeEach, describe, expect, test } from "vitest";
import type { Container, Pod, Service } from "../../../agent/kube/types.ts";
import { AgentError } from "../../../agent/lib/errors.ts";
import { buildEnv, type EnvContext } from "../../../agent/pods/env.ts";
import { FakeObjects, makePod as makeBarePod } from "../volumes/support.ts";

/** As the API server makes it. */
const makePod: typeof makeBarePod = (spec, metadata) => makeBarePod({ enableServiceLinks: true, ...spec }, metadata);

let objects: FakeObjects;
let files: Record<string, string>;

beforeEach(() => {
  objects = new FakeObjects();
  objects.setConfigMap("settings", { color: "blue", "odd.key": "1" });
  objects.setConfigMap("more", { color: "red", "a/b": "2" });
  objects.configMaps.get("shop/more")!.binaryData = { binary: "AA==" };
  objects.setConfigMap("blank", { empty: "" });
  objects.setSecret("login", { user: "joe", pässword: "ünsafe" });
  files = {};
});

function context(more: Partial<EnvContext> = {}): EnvContext {
  return {
    objects,
    services: lookup([]),
    podIPs: ["10.0.0.5"],
    hostIPs: ["192.0.2.1"],
    nodeAllocatable: { cpu: "4", memory: "8Gi" },
    readVolumeFile: (volume, path) => {
      const text = files[`${volume}/${path}`];
      return text === undefined
        ? Promise.reject(new AgentError("NotFound", `volume "${volume}" is not mounted`))
        : Promise.resolve(text);
    },
    ...more,
  };
}

function lookup(services: Service[], hasSynced = true): EnvContext["services"] {
  return {
    hasSynced,
    get: ({ namespace, name }) =>
      services.find(({ metadata }) => metadata.namespace === namespace && metadata.name === name),
    inNamespace: (namespace) => services.filter(({ metadata }) => metadata.namespace === namespace),
  };
}

function service(name: string, spec: Service["spec"], namespace = "shop"): Service {
  return { metadata: { name, namespace }, ...(spec === undefined ? {} : { spec }) };
}

async function envOf(container: Partial<Container>, more: Partial<EnvContext> = {}, pod?: Pod) {
  const full = { name: "app", ...container };
  const entries = await buildEnv(pod ?? makePod({ containers: [full] }), full, context(more));
  return Object.fromEntries(entries.map(({ key, value }) => [key, value]));
}

describe("a Secret whose value is no text", () => {
  const bytes = Buffer.from([0xff, 0x00, 0x80, 0x41]);
  beforeEach(() => {
    objects.secrets.set("shop/key", {
      metadata: { name: "key", namespace: "shop" },
      data: { raw: bytes.toString("base64"), text: Buffer.from("grün").toString("base64") },
    });
  });

  test("reaches the container byte for byte, by envFrom and by key; its texts stay texts", async () => {
    const env = [{ name: "KEY", valueFrom: { secretKeyRef: { name: "key", key: "raw" } } }];
    const found = await envOf({ envFrom: [{ secretRef: { name: "key" } }], env });
    expect(found).toEqual({ raw: bytes, text: "grün", KEY: bytes });
  });

  test("can be built upon, and what stands around it stays as it is", async () => {
    const env = [
      { name: "KEY", valueFrom: { secretKeyRef: { name: "key", key: "raw" } } },
      { name: "LONG", value: "ä$(KEY)ö$(grün)" },
    ];
    const { LONG } = await envOf({ env });
    expect(LONG).toEqual(Buffer.concat([Buffer.from("ä"), bytes, Buffer.from("ö$(grün)")]));
  });
});

describe("buildEnv", () => {
  const cases: { name: string; container: Partial<Container>; want: Record<string, string> }[] = [
    { name: "literals", container: { env: [{ name: "A", value: "1" }, { name: "B" }] }, want: { A: "1", B: "" } },
    {
      name: "values see what stands before them",
      container: {
        env: [
          { name: "A", value: "1" },
          { name: "B", value: "$(A)-$(C)-$$(A)" },
          { name: "C", value: "3" },
        ],
      },
      want: { A: "1", B: "1-$(C)-$(A)", C: "3" },
    },
    {
      name: "the last of equal names wins",
      container: {
        env: [
          { name: "A", value: "1" },
          { name: "A", value: "$(A)2" },
        ],
      },
      want: { A: "12" },
    },
    {
      name: "envFrom with prefix, any key passed on",
      container: { envFrom: [{ configMapRef: { name: "settings" } }, { prefix: "L_", secretRef: { name: "login" } }] },
      want: { color: "blue", "odd.key": "1", L_user: "joe", L_pässword: "ünsafe" },
    },
    {
      name: "env beats envFrom and may build on it",
      container: { envFrom: [{ configMapRef: { name: "settings" } }], env: [{ name: "color", value: "dark$(color)" }] },
      want: { color: "darkblue", "odd.key": "1" },
    },
    {
      name: "keys of objects",
      container: {
        env: [
          { name: "A", valueFrom: { configMapKeyRef: { name: "settings", key: "color" } } },
          { name: "B", valueFrom: { secretKeyRef: { name: "login", key: "user" } } },
        ],
      },
      want: { A: "blue", B: "joe" },
    },
    {
      name: "a missing optional reference leaves what envFrom said",
      container: {
        envFrom: [{ configMapRef: { name: "settings" } }, { secretRef: { name: "nope", optional: true } }],
        env: [
          { name: "color", valueFrom: { configMapKeyRef: { name: "settings", key: "nope", optional: true } } },
          { name: "X", valueFrom: { secretKeyRef: { name: "nope", key: "nope", optional: true } } },
        ],
      },
      want: { color: "blue", "odd.key": "1" },
    },
    {
      name: "values from references are not expanded",
      container: {
        env: [
          { name: "A", value: "1" },
          { name: "B", valueFrom: { fieldRef: { fieldPath: "metadata.annotations['note']" } } },
        ],
      },
      want: { A: "1", B: "$(A)" },
    },
    {
      name: "later envFrom entries beat earlier ones; binary data is none",
      container: { envFrom: [{ configMapRef: { name: "settings" } }, { configMapRef: { name: "more" } }] },
      want: { color: "red", "odd.key": "1", "a/b": "2" },
    },
    {
      name: "a value beats a reference beside it; an empty one does not; nothing is the empty string",
      container: {
        env: [
          { name: "A", value: "1", valueFrom: { fieldRef: { fieldPath: "spec.nonsense" } } },
          { name: "B", value: "", valueFrom: { fieldRef: { fieldPath: "metadata.name" } } },
          { name: "C", valueFrom: {} },
        ],
      },
      want: { A: "1", B: "web", C: "" },
    },
    {
      name: "a key that is there with an empty value is a value",
      container: {
        envFrom: [{ configMapRef: { name: "settings" } }],
        env: [{ name: "color", valueFrom: { configMapKeyRef: { name: "blank", key: "empty" } } }],
      },
      want: { color: "", "odd.key": "1" },
    },
    {
      name: "fields and resources",
      container: {
        env: [
          { name: "IP", valueFrom: { fieldRef: { fieldPath: "status.podIP" } } },
          { name: "CPU", valueFrom: { resourceFieldRef: { resource: "limits.cpu" } } },
        ],
      },
      want: { IP: "10.0.0.5", CPU: "4" },
    },
  ];
  for (const { name, container, want } of cases) {
    test(name, async () => {
      const pod = makePod({ containers: [{ name: "app", ...container }] }, { annotations: { note: "$(A)" } });
      expect(await envOf(container, {}, pod)).toEqual(want);
    });
  }

  const failures: { name: string; env: Container["env"]; why: string }[] = [
    {
      name: "missing object",
      env: [{ name: "A", valueFrom: { configMapKeyRef: { name: "nope", key: "k" } } }],
      why: 'configmap "nope" not found',
    },
    {
      name: "missing key",
      env: [{ name: "A", valueFrom: { configMapKeyRef: { name: "settings", key: "k" } } }],
      why: "couldn't find key k in ConfigMap shop/settings",
    },
    {
      name: "missing key named like something every object has",
      env: [{ name: "A", valueFrom: { configMapKeyRef: { name: "settings", key: "constructor" } } }],
      why: "couldn't find key constructor in ConfigMap shop/settings",
    },
    {
      name: "missing secret key",
      env: [{ name: "A", valueFrom: { secretKeyRef: { name: "login", key: "k" } } }],
      why: "couldn't find key k in Secret shop/login",
    },
    {
      name: "unknown field",
      env: [{ name: "A", valueFrom: { fieldRef: { fieldPath: "spec.nonsense" } } }],
      why: "unsupported fieldPath: spec.nonsense",
    },
  ];
  for (const { name, env, why } of failures) {
    test(`${name} is for the pod's author to fix`, async () => {
      await expect(envOf({ env: env ?? [] })).rejects.toMatchObject({ code: "Invalid", message: why });
    });
  }

  test.each([
    { name: "ConfigMap", envFrom: [{ configMapRef: { name: "nope" } }], why: 'configmap "nope" not found' },
    { name: "Secret", envFrom: [{ secretRef: { name: "nope", optional: false } }], why: 'secret "nope" not found' },
  ])("envFrom of a missing $name is for the pod's author to fix", async ({ envFrom, why }) => {
    await expect(envOf({ envFrom })).rejects.toMatchObject({ code: "Invalid", message: why });
  });

  test("an object nobody registered is not missing: optional does not help", async () => {
    objects.failure = new AgentError("Internal", 'object "shop"/"login" not registered');
    await expect(envOf({ envFrom: [{ secretRef: { name: "login", optional: true } }] })).rejects.toThrow(
      'object "shop"/"login" not registered',
    );
  });

  test("an object that cannot be asked for is not called missing, optional or not", async () => {
    objects.failure = new AgentError("Unavailable", "away");
    const env = [{ name: "A", valueFrom: { secretKeyRef: { name: "login", key: "user", optional: true } } }];
    await expect(envOf({ env })).rejects.toMatchObject({ code: "Unavailable" });
  });

  test("waits for services, but not for a static pod, nor without an API server", async () => {
    await expect(envOf({}, { services: lookup([], false) })).rejects.toMatchObject({ code: "Unavailable" });
    const fromFile = makePod({}, { annotations: { "kubernetes.io/config.source": "file" } });
    expect(await envOf({}, { services: lookup([], false) }, fromFile)).toEqual({});
    expect(await envOf({}, { services: undefined })).toEqual({});
  });

  test("a pod that does not say whether it wants service variables is refused", async () => {
    await expect(envOf({}, {}, makeBarePod({}))).rejects.toThrow("nil pod.spec.enableServiceLinks encountered");
  });

  test("all variables that name an object come from one reading of it", async () => {
    let reads = 0;
    const changing = {
      configMap: async () => {
        reads += 1;
        return { metadata: { name: "settings" }, data: { a: String(reads), b: String(reads) } };
      },
      secret: objects.secret,
    };
    const ref = (key: string) => ({ name: key, valueFrom: { configMapKeyRef: { name: "settings", key } } });
    const container = { envFrom: [{ prefix: "P_", configMapRef: { name: "settings" } }], env: [ref("a"), ref("b")] };
    expect(await envOf(container, { objects: changing })).toEqual({ P_a: "1", P_b: "1", a: "1", b: "1" });
    await envOf(container, { objects: changing });
    expect(reads).toBe(2);
  });

  test("service variables give way to the pod's own, and can be used by them", async () => {
    const services = lookup([service("db", { clusterIP: "10.96.0.9", ports: [{ port: 5432 }] })]);
    const env = [
      { name: "DB_SERVICE_PORT", value: "1" },
      { name: "URL", value: "$(DB_SERVICE_HOST):$(DB_SERVICE_PORT)" },
    ];
    const got = await envOf({ env }, { services });
    expect(got).toMatchObject({ DB_SERVICE_PORT: "1", URL: "10.96.0.9:1", DB_SERVICE_HOST: "10.96.0.9" });
  });
});

describe("fileKeyRef", () => {
  test("is refused where its feature gate is off: the variable would be empty without a word", async () => {
    files["config/app.env"] = "A='1'\n";
    const fileKeyRef = { volumeName: "config", path: "app.env", key: "A" };
    const container = { name: "app", env: [{ name: "A", valueFrom: { fileKeyRef } }] };
    const pod: Pod = { metadata: { name: "web" }, spec: { enableServiceLinks: false, containers: [container] } };
    await expect(buildEnv(pod, container, context({ isEnvFileOn: false }))).rejects.toThrow(
      "fileKeyRef A: feature gate EnvFiles is off on this node",
    );
  });

  const ref = { volumeName: "env", path: "app.env", key: "KEY" };
  test("reads from a mounted volume; optional is for the key, not for the file", async () => {
    files["env/app.env"] = "KEY='v'";
    const from = (more: object) => [{ name: "A", valueFrom: { fileKeyRef: { ...ref, ...more } } }];
    expect(await envOf({ env: from({}) })).toEqual({ A: "v" });
    expect(await envOf({ env: from({ key: "NOPE", optional: true }) })).toEqual({});
    await expect(envOf({ env: from({ key: "NOPE" }) })).rejects.toThrow("couldn't find key NOPE in env file app.env");
    await expect(envOf({ env: from({ path: "nope", optional: true }) })).rejects.toThrow(
      "couldn't parse env file nope",
    );
    files["env/broken.env"] = "export KEY=v";
    await expect(envOf({ env: from({ path: "broken.env", optional: true }) })).rejects.toMatchObject({
      code: "Invalid",
      message: expect.stringMatching(/^couldn't parse env file broken.env of volume "env": line 1: /) as string,
    });
    files["env/empty.env"] = "KEY=''";
    expect(await envOf({ env: from({ path: "empty.env", optional: true }) })).toEqual({});
    await expect(envOf({ env: from({ path: "empty.env" }) })).rejects.toThrow("couldn't find key KEY");
  });
});
