import { chmod, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { createServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { secrets, serviceAccounts } from "../../agent/kube/resources.ts";
import type { Pod, PodSpec, Secret } from "../../agent/kube/types.ts";
import { customImage } from "../support/images/images.ts";
import { registryUser, startRegistry, type TestRegistry } from "../support/node/registry.ts";
import { isReady, until } from "./support/cluster.ts";
import { type BreakableCluster, openBreakableCluster, restartAgent } from "./support/local.ts";
import { image as busybox, podOf, shell } from "./support/pods.ts";

// Known once the cluster runs: with Docker it is an address of the node.
let registryName = "";
// A secret that was mended must not wait for the backoff of 10 s.
const mendedWithinMs = 8_000;

/** A pod that runs an image of the private registry. */
function runs(
  name: string,
  image: string,
  spec: Partial<PodSpec> = {},
  policy?: "Always" | "IfNotPresent" | "Never",
): Pod {
  const script = "trap 'exit 0' TERM; while true; do sleep 1 & wait $!; done";
  const pull = policy === undefined ? {} : { imagePullPolicy: policy };
  return podOf(name, [shell("main", script, { image: `${registryName}/${image}`, ...pull })], spec);
}

const withSecret = (...names: string[]): Partial<PodSpec> => ({ imagePullSecrets: names.map((name) => ({ name })) });

function pullSecret(name: string, password = registryUser.password): Secret {
  const auth = btoa(`${registryUser.username}:${password}`);
  const config = JSON.stringify({ auths: { [`https://${registryName}/v1/`]: { auth } } });
  return {
    apiVersion: "v1",
    kind: "Secret",
    metadata: { name },
    type: "kubernetes.io/dockerconfigjson",
    data: { ".dockerconfigjson": btoa(config) },
  };
}

function waitingOf({ status }: Pod): { reason?: string; message?: string } | undefined {
  return status?.containerStatuses?.[0]?.state?.waiting;
}

// Docker 20.10 asks a registry who it is before it can be told to stop: 15 s by https, and as long by http.
const dockerPatienceMs = 45_000;

// What containerd and Docker say of it.
const unauthorized = /401|authorization|unauthorized|no basic auth credentials/;

const isPullFailure = (pod: Pod) => ["ErrImagePull", "ImagePullBackOff"].includes(waitingOf(pod)?.reason ?? "");

describe.skipIf(!inject("isLocal"))("a private registry", () => {
  let dir: string;
  let env: BreakableCluster;
  let registry: TestRegistry;

  beforeAll(async () => {
    dir = await mkdtemp(join(tmpdir(), "nodelet-e2e-images-"));
    const flags = await putPlugins(dir);
    env = await openBreakableCluster({}, flags);
    registryName = env.local.runtime.registryName("private.local");
    await writeFile(join(dir, "registry"), registryName);
    await writeFile(
      join(env.local.rootDir, "config.json"),
      JSON.stringify({ auths: { [`${registryName}/node`]: registryUser } }),
    );
    registry = await startRegistry(env.local.node, { name: registryName, withCredentials: true });
    for (const name of [
      "team/json",
      "team/cfg",
      "team/mended",
      "team/shared",
      "node/app",
      "plugin/app",
      "account/app",
    ]) {
      // Each with a file of its own: who may use an image is remembered by its content.
      const files = [{ kind: "file", path: "name", content: name }] as const;
      await registry.push(await customImage({ name: `${registryName}/${name}:1`, files }));
    }
    for (const secret of [pullSecret("good"), pullSecret("also-good")]) await env.cluster.create(secrets, secret);
  });
  afterAll(async () => {
    await env?.[Symbol.asyncDispose]();
    await rm(dir, { recursive: true, force: true });
  });

  test("gives a pod its image for a secret of the new type, and the events say what it cost", async () => {
    const { cluster } = env;
    await cluster.createPod(runs("json", "team/json:1", withSecret("good")));
    await cluster.waitForPod("json", "ready", isReady);
    const messages = await until("both events", async () => {
      const events = (await cluster.eventsOf("json")).filter(
        ({ reason }) => reason === "Pulling" || reason === "Pulled",
      );
      return events.length === 2 ? events.map(({ message = "" }) => message) : undefined;
    });
    expect(messages.join("\n")).toContain(`Pulling image "${registryName}/team/json:1"`);
    expect(messages.join("\n")).toMatch(
      /Successfully pulled image "\S+" in [\d.]+m?s \([\d.]+m?s including waiting\)\. Image size: \d{6,} bytes\./,
    );
  });

  test("gives a pod its image for a secret of the old type", async () => {
    const { cluster } = env;
    const data = { ".dockercfg": btoa(JSON.stringify({ [registryName]: registryUser })) };
    const metadata = { name: "old" };
    await cluster.create(secrets, {
      apiVersion: "v1",
      kind: "Secret",
      metadata,
      type: "kubernetes.io/dockercfg",
      data,
    });
    await cluster.createPod(runs("cfg", "team/cfg:1", withSecret("old")));
    await cluster.waitForPod("cfg", "ready", isReady);
  });

  test("refuses a wrong password; the pod says so, and runs soon after the secret was mended", async () => {
    const { cluster } = env;
    const { namespace } = cluster;
    await cluster.create(secrets, pullSecret("wrong", "wr0ng-password"));
    await cluster.createPod(runs("mended", "team/mended:1", withSecret("wrong")));
    const failed = await cluster.waitForPod("mended", "failing", isPullFailure);
    expect(waitingOf(failed)?.message).toMatch(unauthorized);
    const backing = await cluster.waitForPod(
      "mended",
      "backing off",
      (pod) => waitingOf(pod)?.reason === "ImagePullBackOff",
    );
    const expected = `Back-off pulling image "${registryName}/team/mended:1": ErrImagePull: `;
    expect(waitingOf(backing)?.message?.slice(0, expected.length)).toBe(expected);

    const mendedAt = performance.now();
    const { data } = pullSecret("wrong");
    await cluster.client.patch(secrets, { namespace, name: "wrong" }, { data }, { type: "merge" });
    await cluster.waitForPod("mended", "ready", isReady);
    expect(performance.now() - mendedAt).toBeLessThan(mendedWithinMs);
    expect(JSON.stringify(await cluster.eventsOf("mended"))).not.toContain("wr0ng");
    expect(await readFile(env.local.agent.logPath, "utf8")).not.toContain("wr0ng");
  });

  test("is asked again as soon as a missing secret is there", async () => {
    const { cluster } = env;
    await cluster.createPod(runs("late-secret", "team/mended:1", withSecret("late"), "Always"));
    await cluster.waitForPod("late-secret", "failing", isPullFailure);
    await until("the event", async () =>
      (await cluster.eventsOf("late-secret")).some(
        ({ reason, message = "" }) => reason === "FailedToRetrieveImagePullSecret" && message.includes("(late)"),
      ),
    );
    const mendedAt = performance.now();
    await cluster.create(secrets, pullSecret("late"));
    await cluster.waitForPod("late-secret", "ready", isReady);
    expect(performance.now() - mendedAt).toBeLessThan(mendedWithinMs);
  });

  test("gets the secrets that can be read; the others are named without their content", async () => {
    const { cluster } = env;
    const auth = btoa("s3cret-without-user");
    const data = { ".dockerconfigjson": btoa(JSON.stringify({ auths: { [registryName]: { auth } } })) };
    await cluster.create(secrets, { ...pullSecret("broken"), data });
    await cluster.createPod(runs("broken-secret", "team/mended:1", withSecret("broken", "", "good"), "Always"));
    await cluster.waitForPod("broken-secret", "ready", isReady);
    const messages = await until("the event", async () => {
      const events = await cluster.eventsOf("broken-secret");
      const found = events.find(({ reason }) => reason === "FailedToRetrieveImagePullSecret");
      return found === undefined ? undefined : JSON.stringify(events);
    });
    expect(messages).toContain(`/broken: auth of ${registryName} is not base64 of user:password`);
    expect(messages).not.toContain(auth);
    expect(messages).not.toContain("s3cret");
  });

  test("knows the node by its config.json", async () => {
    const { cluster } = env;
    await cluster.createPod(runs("node-config", "node/app:1"));
    await cluster.waitForPod("node-config", "ready", isReady);
  });

  test("knows the node by what a plugin answers", async () => {
    const { cluster } = env;
    await cluster.createPod(runs("plugin", "plugin/app:1"));
    await cluster.waitForPod("plugin", "ready", isReady);
  });

  test("knows a service account by what a plugin made of its token; for other accounts the image is not there", async () => {
    const { cluster } = env;
    const annotations = { "example.com/registry": "yes" };
    await cluster.create(serviceAccounts, {
      apiVersion: "v1",
      kind: "ServiceAccount",
      metadata: { name: "puller", annotations },
    });
    await cluster.createPod(runs("account", "account/app:1", { serviceAccountName: "puller" }));
    await cluster.waitForPod("account", "ready", isReady);
    await cluster.createPod(runs("account-again", "account/app:1", { serviceAccountName: "puller" }));
    await cluster.waitForPod("account-again", "ready", isReady);
    await cluster.createPod(runs("no-account", "account/app:1"));
    await cluster.waitForPod("no-account", "refused", isPullFailure);
    expect(await readFile(env.local.agent.logPath, "utf8")).not.toContain(registryUser.password);
  });

  test("has images that stay their pods' own, also after a restart of the agent and without the registry", async () => {
    const { cluster } = env;
    const image = "team/shared:1";
    await cluster.createPod(runs("owner", image, withSecret("good")));
    await cluster.waitForPod("owner", "ready", isReady);
    const meet = async (when: string) => {
      await cluster.createPod(runs(`stranger-${when}`, image));
      await cluster.createPod(runs(`never-${when}`, image, {}, "Never"));
      await cluster.createPod(runs(`friend-${when}`, image, withSecret("good"), "Never"));
      await cluster.createPod(runs(`equal-${when}`, image, withSecret("also-good"), "Never"));
      const stranger = await cluster.waitForPod(`stranger-${when}`, "refused", isPullFailure);
      const never = await cluster.waitForPod(
        `never-${when}`,
        "refused",
        (pod) => waitingOf(pod)?.reason === "ErrImageNeverPull",
      );
      expect(waitingOf(never)?.message).toContain("does not have the proper credentials");
      for (const name of [`friend-${when}`, `equal-${when}`]) await cluster.waitForPod(name, "ready", isReady);
      return waitingOf(stranger)?.message;
    };
    expect(await meet("first")).toMatch(unauthorized);
    await registry.stop();
    await restartAgent(env, "SIGKILL");
    expect(await meet("again")).toContain("connection refused");
    await registry.start();
  });

  test("that hangs holds up no other pod, and is left when its own pod goes", async () => {
    const { cluster, local } = env;
    await using hanging = await startHangingServer(local.node.network.hostIP);
    const image = `${await local.runtime.nameOfServer(hanging.address, "hangs.local")}/app:1`;
    await cluster.createPod(podOf("hangs", [shell("main", "sleep 1", { image })]));
    await until("the registry is asked", async () => hanging.connections() > 0);
    await cluster.createPod(podOf("beside", [shell("main", "sleep 60", { image: busybox })]));
    await cluster.waitForPod("beside", "ready", isReady);
    await cluster.createPod(runs("beside-pulls", "team/json:1", withSecret("good"), "Always"));
    await cluster.waitForPod("beside-pulls", "ready", isReady);
    expect(waitingOf(await cluster.getPod("hangs"))?.reason).toBe("ContainerCreating");
    const before = hanging.accepted();
    await restartAgent(env, "SIGKILL");
    await until("the registry is asked again", async () => hanging.accepted() > before);
    const intents = join(local.rootDir, "image_manager", "pulling");
    await until("the pull is noted again", async () => (await readdir(intents)).length === 1);
    await cluster.deletePod("hangs");
    // Sooner than either runtime gives up by itself.
    await cluster.waitForPodGone("hangs", 30_000);
    const isGivenUp = async () => hanging.connections() === 0;
    await until("the pull is given up", isGivenUp, local.runtime.name === "docker" ? dockerPatienceMs : 10_000);
  });

  test("whose plugin is missing ends the agent's start, naming file and field", async () => {
    const { agent } = env.local;
    await agent.stop();
    await rm(join(dir, "bin", "node-plugin"));
    await agent.start();
    await until("the agent has given up", async () => !agent.isRunning);
    const log = await readFile(agent.logPath, "utf8");
    expect(log).toContain(`${join(dir, "providers.yaml")}: providers[0].name: its executable cannot be used`);
    await writeFile(join(dir, "bin", "node-plugin"), nodePlugin, { mode: 0o755 });
    await agent.start();
  });
});

describe.skipIf(!inject("isLocal"))("AlwaysVerify", () => {
  test("trusts not even the images that were on the node before", async () => {
    await using env = await openBreakableCluster({ imagePullCredentialsVerificationPolicy: "AlwaysVerify" });
    const { cluster, local } = env;
    const name = local.runtime.registryName("registry.local");
    const registry = await startRegistry(local.node, { name });
    const preloaded = await customImage({ name: `${name}/preloaded:1` });
    await local.runtime.loadImages([preloaded]);
    const main = shell("main", "sleep 60", { image: preloaded.name, imagePullPolicy: "IfNotPresent" });
    await cluster.createPod(podOf("preloaded", [main]));
    await cluster.waitForPod("preloaded", "refused", isPullFailure);
    await registry.push(preloaded);
    // Now its registry can tell that everybody may have it.
    await cluster.waitForPod("preloaded", "ready", isReady);
  });
});

/** Shell: the answer for images of this path; the file beside the plugins' directory says in which registry. */
const answerFor = (path: string) => {
  const [before, after] = JSON.stringify({
    apiVersion: "credentialprovider.kubelet.k8s.io/v1",
    kind: "CredentialProviderResponse",
    cacheKeyType: "Image",
    cacheDuration: "0s",
    auth: { [`REGISTRY/${path}`]: registryUser },
  }).split("REGISTRY");
  return `echo '${before}'"$(cat "$(dirname "$0")/../registry")"'${after}'`;
};

const nodePlugin = `#!/bin/sh\n${answerFor("plugin")}\n`;
// Answers only if it was handed a token and the annotation.
const accountPlugin = `#!/bin/sh
request=$(cat)
case "$request" in *'"serviceAccountToken":"'*'"example.com/registry":"yes"'*) ;; *) exit 1 ;; esac
${answerFor("account")}
`;

/** @returns the flags that make the agent use them */
async function putPlugins(dir: string): Promise<string[]> {
  const common = (path: string) => [
    `  matchImages: ["private.local/${path}", "10.200.*.*:5000/${path}"]`, // containerd's name for it, and Docker's
    "  defaultCacheDuration: 1m",
    "  apiVersion: credentialprovider.kubelet.k8s.io/v1",
  ];
  const yaml = [
    "apiVersion: kubelet.config.k8s.io/v1",
    "kind: CredentialProviderConfig",
    "providers:",
    "- name: node-plugin",
    ...common("plugin"),
    "- name: account-plugin",
    ...common("account"),
    "  tokenAttributes:",
    "    serviceAccountTokenAudience: registry",
    "    cacheType: Token",
    "    requireServiceAccount: true",
    "    requiredServiceAccountAnnotationKeys: [example.com/registry]",
  ];
  await writeFile(join(dir, "providers.yaml"), yaml.join("\n"));
  await mkdir(join(dir, "bin"));
  for (const [name, text] of [
    ["node-plugin", nodePlugin],
    ["account-plugin", accountPlugin],
  ] as const) {
    await writeFile(join(dir, "bin", name), text);
    await chmod(join(dir, "bin", name), 0o755);
  }
  return [
    ...["--image-credential-provider-config", join(dir, "providers.yaml")],
    ...["--image-credential-provider-bin-dir", join(dir, "bin")],
  ];
}

interface HangingServer extends AsyncDisposable {
  address: string;
  /** How many wait for an answer now. */
  connections(): number;
  /** How many came so far. */
  accepted(): number;
}

/** Takes connections and never says anything. */
async function startHangingServer(host: string): Promise<HangingServer> {
  const open = new Set<Socket>();
  let accepted = 0;
  const server: Server = createServer((socket) => {
    accepted += 1;
    open.add(socket);
    socket.on("error", () => {});
    socket.on("close", () => open.delete(socket));
    socket.resume();
  });
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen(0, host, resolve);
  });
  const address = server.address();
  if (address === null || typeof address === "string") throw new Error("no port");
  return {
    address: `${host}:${address.port}`,
    connections: () => open.size,
    accepted: () => accepted,
    [Symbol.asyncDispose]: async () => {
      for (const socket of open) socket.destroy();
      await new Promise((resolve) => void server.close(resolve));
    },
  };
}
