import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { access, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { systemClock } from "../../agent/lib/clock.ts";
import { connectDBus, type DBus } from "../../agent/node/dbus.ts";
import { Variant } from "../../agent/node/dbus-wire.ts";

const daemon = "/usr/bin/dbus-daemon";
const hasDaemon = await access(daemon).then(
  () => true,
  () => false,
);

describe.skipIf(!hasDaemon)("the message bus itself", () => {
  const self = {
    destination: "org.freedesktop.DBus",
    path: "/org/freedesktop/DBus",
    interface: "org.freedesktop.DBus",
  };
  let directory: string;
  let child: ChildProcess;
  let bus: DBus;

  beforeAll(async () => {
    directory = await mkdtemp(join(tmpdir(), "nodelet-dbus-"));
    const address = `unix:path=${join(directory, "bus")}`;
    child = spawn(daemon, ["--session", "--nofork", "--print-address", `--address=${address}`], {
      stdio: ["ignore", "pipe", "ignore"],
    });
    if (child.stdout === null) throw new Error("dbus-daemon has no output");
    await once(child.stdout, "data"); // printed when it listens
    bus = await connectDBus(join(directory, "bus"), systemClock);
  });

  afterAll(async () => {
    bus.close();
    const exited = once(child, "exit");
    child.kill("SIGTERM");
    await exited;
    await rm(directory, { recursive: true });
  });

  test("understands our calls, and we its answers and errors", async () => {
    expect(await bus.call({ ...self, member: "RequestName", signature: "su", args: ["org.example.Test", 0] })).toEqual([
      1,
    ]);
    const [names] = await bus.call({ ...self, member: "ListNames", signature: "", args: [] });
    expect(names).toContain("org.example.Test");
    await expect(
      bus.call({ ...self, member: "GetNameOwner", signature: "s", args: ["org.example.Nobody"] }),
    ).rejects.toMatchObject({
      errorName: "org.freedesktop.DBus.Error.NameHasNoOwner",
    });
  });

  test("takes an array of dictionary entries with variants", async () => {
    const [credentials] = await bus.call({
      ...self,
      member: "GetConnectionCredentials",
      signature: "s",
      args: ["org.example.Test"],
    });
    expect(credentials).toContainEqual(["ProcessID", new Variant("u", process.pid)]);
  });
});
