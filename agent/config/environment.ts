/** The agent's own environment, for the programs that inherit it. May hold secrets: never log it. */
export function agentEnvironment(): NodeJS.ProcessEnv {
  return { ...process.env };
}
