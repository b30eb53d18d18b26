import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { createLogger, silentLogger } from "../../../agent/lib/log.ts";
import { cacheMs, createNodeDockerConfig } from "../../../agent/runtime/docker-config.ts";
import { authsFor } from "../../../agent/runtime/images-auth.ts";
import { FakeClock } from "../kube/fake-clock.ts";

let dir: string;
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), "nodelet-docker-config-"));
});
afterEach(async () => {
  await rm(dir, { recursive: true, force: true });
});

// In the order in which they are searched.
const places = [
  "kubelet/config.json",
  "cwd/config.json",
  "home/.docker/config.json",
  "root/.docker/config.json",
  "kubelet/.dockercfg",
  "cwd/.dockercfg",
  "home/.dockercfg",
  "root/.dockercfg",
];

const entry = (name: string) => ({ "quay.io": { username: name, password: "s3cret" } });
const contentOf = (place: string) => JSON.stringify(place.endsWith(".json") ? { auths: entry(place) } : entry(place));

async function put(place: string, text = contentOf(place)): Promise<void> {
  await mkdir(dirname(join(dir, place)), { recursive: true });
  await writeFile(join(dir, place), text);
}

function open(change: { home?: string; clock?: FakeClock; log?: typeof silentLogger } = {}) {
  const { home = join(dir, "home"), clock = new FakeClock(), log = silentLogger } = change;
  const config = createNodeDockerConfig({
    rootDir: join(dir, "kubelet"),
    cwd: join(dir, "cwd"),
    home,
    fsRoot: join(dir, "root"),
    clock,
    log,
  });
  return async () => authsFor("quay.io/app", [await config.keyring()]).map(({ username }) => username);
}

test("the first file counts, in the reference's order", async () => {
  for (const place of places.toReversed()) {
    await put(place);
    expect(await open()()).toEqual([place]);
  }
});

test("without any file there are no credentials, and without a home it is not searched", async () => {
  expect(await open()()).toEqual([]);
  await put("home/.docker/config.json");
  expect(await open({ home: "" })()).toEqual([]);
});

test("a file that cannot be used is told once, without its content, and passed over", async () => {
  const lines: string[] = [];
  const log = createLogger({ level: "info", stream: { write: (line: string) => void lines.push(line) } });
  await put("kubelet/config.json", '{"auths": {"quay.io": {"password": s3cret');
  await put("home/.docker/config.json");
  const usernames = open({ log });
  expect(await usernames()).toEqual(["home/.docker/config.json"]);
  await usernames();
  expect(lines).toHaveLength(1);
  expect(lines[0]).toContain("kubelet/config.json");
  expect(lines.join()).not.toContain("s3cret");
});

test("a change is seen after five minutes", async () => {
  const clock = new FakeClock();
  const usernames = open({ clock });
  expect(await usernames()).toEqual([]);
  await put("kubelet/config.json");
  await clock.advance(cacheMs - 1);
  expect(await usernames()).toEqual([]);
  await clock.advance(1);
  expect(await usernames()).toEqual(["kubelet/config.json"]);
});
