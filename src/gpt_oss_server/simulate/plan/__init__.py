"""The search for a layout and a policy: candidates, trials, knees, money, what is proposed."""
