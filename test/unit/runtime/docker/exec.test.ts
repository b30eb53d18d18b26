import { expect, test } from "vitest";
import { closeGraceMs, DockerExecs } from "../../../../agent/runtime/docker/exec.ts";
import { execSync } from "../../../../agent/runtime/docker/exec-sync.ts";
import { FakeClock, settle } from "../../kube/fake-clock.ts";
import { answered, fakeDocker } from "./fake-docker.ts";

const create = "POST /containers/c1/exec";
const start = "POST /exec/e1/start";

test("a command that nobody waits for any more is started all the same, as Docker would keep it for ever", async () => {
  const creating = Promise.withResolvers<object>();
  await using t = await fakeDocker(async ({ path }) => (path.endsWith("/exec") ? await creating.promise : undefined));
  const execs = new DockerExecs(t.client, new FakeClock());
  const stop = new AbortController();
  const outcome = execSync(execs, "c1", ["true"], 0, stop.signal).catch((err: unknown) => err);
  await expect.poll(() => t.requests).toEqual([create]);
  stop.abort();
  expect(await outcome).toMatchObject({ code: "Canceled", message: "exec in container c1: canceled" });
  creating.resolve({ Id: "e1" });
  await expect.poll(() => t.requests).toEqual([create, start]);
});

test("a command that is canceled before it begins is asked for nowhere", async () => {
  await using t = await fakeDocker(() => undefined);
  const execs = new DockerExecs(t.client, new FakeClock());
  await expect(execSync(execs, "c1", ["true"], 0, AbortSignal.abort())).rejects.toMatchObject({ code: "Canceled" });
  expect(t.requests).toEqual([]);
});

test("at the agent's end nothing is begun any more, and a daemon that hangs is not waited for", async () => {
  const creating = Promise.withResolvers<object>();
  await using t = await fakeDocker(async ({ path }) => (path.endsWith("/exec") ? await creating.promise : answered));
  const clock = new FakeClock();
  const execs = new DockerExecs(t.client, clock);
  const outcome = execSync(execs, "c1", ["true"], 0).catch((err: unknown) => err);
  await expect.poll(() => t.requests).toEqual([create]);
  let hasClosed = false;
  const closing = execs.close().then(() => (hasClosed = true));
  expect(await outcome).toMatchObject({ code: "Canceled" });
  await expect(execSync(execs, "c1", ["true"], 0)).rejects.toMatchObject({ code: "Canceled" });
  await clock.advance(2 * closeGraceMs - 1);
  expect(hasClosed).toBe(false);
  await clock.advance(1);
  await closing;
  expect(clock.waiting).toBe(0);

  // What the daemon makes of it later stays as it is.
  creating.resolve({ Id: "e1" });
  await settle();
  expect(t.requests).toEqual([create]);
});

test("with nothing under way the end comes at once", async () => {
  await using t = await fakeDocker(() => undefined);
  const clock = new FakeClock();
  await new DockerExecs(t.client, clock).close();
  expect(clock.waiting).toBe(0);
});
