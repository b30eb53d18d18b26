import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import type { Pod, PodSpec } from "../../../../agent/kube/types.ts";
import { unsupported } from "../../../../agent/runtime/docker/refusals.ts";
import { profileBytesMax, readSeccompProfile } from "../../../../agent/runtime/docker/seccomp-profile.ts";
import { daemonInfo } from "./config-support.ts";

function pod(change: Partial<PodSpec> = {}, container: Partial<PodSpec["containers"][number]> = {}): Pod {
  return {
    metadata: { name: "web", namespace: "shop", uid: "u1" },
    spec: { containers: [{ name: "app", image: "web:1", ...container }], ...change },
  };
}

const enabled = [{ name: "data", mountPath: "/data", readOnly: true, recursiveReadOnly: "Enabled" as const }];
const memory = (quantity: string) => ({ limits: { memory: quantity } });

const cases: { name: string; pod: Pod; engine?: string; want: RegExp | undefined }[] = [
  { name: "a plain pod", pod: pod(), want: undefined },
  { name: "a user namespace", pod: pod({ hostUsers: false }), want: /^hostUsers: false needs a CRI runtime/ },
  { name: "the node's user namespace", pod: pod({ hostUsers: true }), want: undefined },
  {
    name: "strict groups",
    pod: pod({ securityContext: { supplementalGroupsPolicy: "Strict" } }),
    want: /^supplementalGroupsPolicy Strict needs a CRI runtime/,
  },
  {
    name: "an image volume",
    pod: pod({ volumes: [{ name: "tools", image: { reference: "tools:1" } }] }),
    want: /^volume "tools": image volumes need a CRI runtime/,
  },
  {
    name: "recursively read-only with an old Engine",
    pod: pod({}, { volumeMounts: enabled }),
    want: /^volumeMount "data": recursive read-only mounts need Docker Engine 25 or later; this is 20\.10\.24/,
  },
  {
    name: "recursively read-only with a new Engine",
    pod: pod({}, { volumeMounts: enabled }),
    engine: "1.44",
    want: undefined,
  },
  {
    name: "recursively read-only if possible",
    pod: pod({}, { volumeMounts: [{ ...enabled[0]!, recursiveReadOnly: "IfPossible" }] }),
    want: undefined,
  },
  {
    name: "too little memory",
    pod: pod({}, { resources: memory("4Mi") }),
    want: /^container "app": a memory limit of 4194304 bytes/,
  },
  { name: "just enough memory", pod: pod({}, { resources: memory("6Mi") }), want: undefined },
  {
    name: "too little memory in an init container",
    pod: pod({ initContainers: [{ name: "init", image: "i", resources: memory("1Mi") }] }),
    want: /^container "init": /,
  },
  { name: "too little memory for the whole pod", pod: pod({ resources: memory("5Mi") }), want: /^container "app": / },
];
for (const { name, pod: one, engine = "1.41", want } of cases) {
  test(`unsupported: ${name}`, () => {
    const why = unsupported(one, daemonInfo({ apiVersion: engine }));
    if (want === undefined) expect(why).toBeUndefined();
    else expect(why).toMatch(want);
  });
}

const what = "container app in pod shop/web";

test("a seccomp profile is read as text, small and of JSON", async () => {
  const dir = await mkdtemp(join(tmpdir(), "nodelet-seccomp-"));
  onTestFinished(async () => await rm(dir, { recursive: true, force: true }));
  const path = join(dir, "p.json");
  const read = async () => await readSeccompProfile(what, { type: "Localhost", localhostRef: path });
  await expect(read()).rejects.toThrow(`${what}: seccomp profile ${path} cannot be used: ENOENT`);
  const profile = '{ "syscalls": [{ "args": [{ "value": 18446744069414584320 }] }] }';
  await writeFile(path, `${profile}\n`);
  expect(await read()).toBe(profile);
  await writeFile(path, "root:x:0:0");
  await expect(read()).rejects.toThrow(new RegExp(`${path} cannot be used: it is no JSON$`));
  await writeFile(path, "[1]");
  await expect(read()).rejects.toThrow(/it is no JSON object$/);
  await writeFile(path, `"${"x".repeat(profileBytesMax)}"`);
  await expect(read()).rejects.toThrow(/it has \d+ bytes, more than 1048576$/);
});

test("other profiles have no file", async () => {
  expect(await readSeccompProfile(what, { type: "RuntimeDefault", localhostRef: "" })).toBeUndefined();
  expect(await readSeccompProfile(what, undefined)).toBeUndefined();
});
