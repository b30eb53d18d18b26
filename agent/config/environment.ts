// The reference's variable; any value will do.
const skipKernelCheckVariable = "KUBE_PROXY_NFTABLES_SKIP_KERNEL_VERSION_CHECK";

/** True if nftables mode is to be tried on a kernel that is too old for it, too. */
export function skipsNftablesKernelCheck(env: NodeJS.ProcessEnv = process.env): boolean {
  return (env[skipKernelCheckVariable] ?? "") !== "";
}

/** The agent's own environment, for the programs that inherit it. May hold secrets: never log it. */
export function agentEnvironment(): NodeJS.ProcessEnv {
  return { ...process.env };
}
