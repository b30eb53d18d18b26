import { describe, expect, test } from "vitest";
import type { ApiClient } from "../../../agent/kube/port.ts";
import type { PersistentVolumeClaim } from "../../../agent/kube/types.ts";
import { AgentError, withContext } from "../../../agent/lib/errors.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import { TimelineRecorder } from "../../../agent/pods/timeline-recorder.ts";
import { buildEnv } from "../../../agent/pods/env.ts";
import { awaitedBy, awaiting } from "../../../agent/volumes/awaits.ts";
import { createClaimResolver } from "../../../agent/volumes/claims.ts";
import { createCSIDrivers } from "../../../agent/volumes/csi/drivers.ts";
import { selectKeys } from "../../../agent/volumes/object-files.ts";
import { createObjectSource } from "../../../agent/volumes/object-source.ts";
import { FakeClock, FakeObjects, makePod } from "./support.ts";
import { VolumeStepError } from "../../../agent/volumes/step-error.ts";

const never = new AbortController().signal;
const caught = async (work: () => unknown): Promise<unknown> => {
  try {
    return await work();
  } catch (err) {
    return err;
  }
};

async function claimError(claim: Partial<PersistentVolumeClaim> | undefined): Promise<unknown> {
  const get = async (): Promise<unknown> => {
    await Promise.resolve();
    if (claim === undefined) throw new AgentError("NotFound", "no such claim");
    return { metadata: { name: "disk" }, ...claim };
  };
  const client = { get } as unknown as ApiClient;
  const volume = { name: "v", persistentVolumeClaim: { claimName: "disk" } };
  const resolver = createClaimResolver({ client, matchesNode: () => true });
  return await caught(() => resolver.resolve(makePod({ volumes: [volume] }), volume, never));
}

describe("what fails says what it waits for", () => {
  const objects = async () => {
    const get = async () => await Promise.reject(new AgentError("NotFound", "not there"));
    const client = { get } as unknown as ApiClient;
    const source = createObjectSource({ client, clock: new FakeClock(), log: silentLogger, strategy: "Get" });
    source.register(makePod({ volumes: [{ name: "v", configMap: { name: "settings" } }] }));
    return await caught(() => source.configMap("shop", "settings"));
  };
  const missingKey = async () => {
    const found = new FakeObjects();
    found.setSecret("login", {});
    const env = [{ name: "A", valueFrom: { secretKeyRef: { name: "login", key: "user" } } }];
    const pod = makePod({ enableServiceLinks: true, containers: [{ name: "app", env }] });
    const context = {
      objects: found,
      services: undefined,
      podIPs: [],
      hostIPs: [],
      nodeAllocatable: {},
      readVolumeFile: async () => await Promise.resolve(""),
    };
    return await caught(() => buildEnv(pod, { name: "app", env }, context));
  };
  const missingFile = () =>
    caught(() => selectKeys(new Map(), { items: [{ key: "a", path: "a" }], defaultMode: 0o644, what: "config" }));
  const missingDriver = () =>
    caught(() => {
      const open = () => {
        throw new Error("not opened here");
      };
      return createCSIDrivers({ csiNode: undefined, log: silentLogger, open }).client("disk.example");
    });

  test.each([
    ["a claim that is not there", () => claimError(undefined), "claim"],
    [
      "a claim that goes away",
      () => claimError({ metadata: { name: "disk", deletionTimestamp: "2026-01-01T00:00:00Z" } }),
      "new claim",
    ],
    ["a claim that is not bound", () => claimError({ status: { phase: "Pending" } }), "binding"],
    ["a ConfigMap that is not there", objects, "object"],
    ["a key that a ConfigMap's volume lists in vain", missingFile, "object"],
    ["a key that a variable is to have", missingKey, "object"],
    ["a driver that has not registered", missingDriver, "driver"],
    ["anything else", async () => await Promise.resolve(new Error("PVC is not bound")), undefined],
  ])("%s", async (_name, failing, want) => {
    const err = await failing();
    expect(err).toBeInstanceOf(Error);
    expect(awaitedBy(withContext(err, "set up volume v"))).toBe(want);
  });

  test("an attachment, by the step that waits for it", () => {
    const step = (name: "WaitForAttach" | "MountDevice") => new VolumeStepError(name, new AgentError("NotFound", "no"));
    expect([awaitedBy(step("WaitForAttach")), awaitedBy(step("MountDevice"))]).toEqual(["attachment", undefined]);
  });
});

test("people are told what a volume waits for, however long its error is", () => {
  const clock = new FakeClock();
  const pod = makePod({});
  const recorder = new TimelineRecorder(clock);
  const end = recorder.volume(pod, "v");
  end(new AgentError("Unavailable", `PVC is not bound ${"x".repeat(2_000)}`, awaiting("binding")));
  expect(recorder.timelines.get(pod.metadata.uid ?? "")?.entries.at(-1)).toMatchObject({ awaited: "binding" });
});
